/*
 * Objects of the selected annotations by spatialembed, as detections below each annotation, with class,
 * score and expected IoU. The page docs/qupath.md says more.
 *
 * Automate > Script editor > Open, set the lines below, select annotations, Run. Settings may also be
 * given to `QuPath script` as --args NAME=VALUE.
 */
import groovy.json.JsonOutput
import groovy.json.JsonSlurper
import qupath.lib.io.PathIO
import qupath.lib.regions.RegionRequest

def settings = [
    command   : 'spatialembed',  // the file bin/spatialembed of the environment it is installed in
    server    : '',              // 'http://127.0.0.1:8000': ask `spatialembed serve` there instead
    model     : 'nuclei',
    downsample: '1',             // of the image: 2 sends every region at half its size
    diameter  : 'null',          // px at that size; null: as the model says (command only)
    channel   : 'null',          // number from 1, name, max or sum; null: as the model says (command only)
]
if (binding.hasVariable('args') && args)
    args.each { def (name, value) = it.split('=', 2); settings[name] = value }

/** The GeoJSON of spatialembed, scaled and moved to where its region lies in the image. */
def placed(String geojson, double scale, double left, double top) {
    def place
    place = { node ->
        node[0] instanceof Number ? [node[0] * scale + left, node[1] * scale + top] : node.collect(place)
    }
    def all = new JsonSlurper().parseText(geojson)
    all.features.each {
        it.remove('id')  // a number, where QuPath gives ids of its own
        it.geometry.coordinates = place(it.geometry.coordinates)
    }
    JsonOutput.toJson(all)
}

/** What the command finds in an image file, as GeoJSON. */
def byCommand(settings, File image) {
    def out = new File(image.parentFile, 'found')
    def words = [settings.command, 'predict', image.path, '--model', settings.model, '--out', out.path,
                 '--format', 'geojson', '--diameter', settings.diameter, '--channel', settings.channel]
    def process = new ProcessBuilder(words).redirectErrorStream(true).start()
    def said = process.inputStream.text
    if (process.waitFor() != 0)
        throw new RuntimeException("spatialembed: $said")
    new File(out, 'region.geojson').getText('UTF-8')
}

/** What a server finds in an image file, as GeoJSON. */
def byServer(settings, File image) {
    def url = new URL("${settings.server}/v1/models/${settings.model}/instances?format=geojson")
    def connection = url.openConnection()
    connection.requestMethod = 'POST'
    connection.doOutput = true
    connection.setRequestProperty('Content-Type', 'image/tiff')
    connection.outputStream.withStream { it << image.bytes }
    if (connection.responseCode != 200)
        throw new RuntimeException("spatialembed: ${connection.errorStream?.text}")
    connection.inputStream.getText('UTF-8')
}

def regions = getSelectedObjects().findAll { it.isAnnotation() && it.hasROI() }
if (!regions) {
    println 'spatialembed: select the annotations whose objects are wanted'
    return
}
def image = getCurrentServer()
def downsample = settings.downsample as double
regions.each { region ->
    def folder = File.createTempDir('spatialembed', '')
    try {
        def request = RegionRequest.createInstance(image.getPath(), downsample, region.getROI())
        def file = new File(folder, 'region.tif')
        writeImageRegion(image, request, file.path)
        def found = settings.server ? byServer(settings, file) : byCommand(settings, file)
        def moved = new File(folder, 'placed.geojson')
        moved.setText(placed(found, downsample, request.x, request.y), 'UTF-8')
        def objects = PathIO.readObjects(moved.toPath()).findAll {
            region.getROI().contains(it.getROI().centroidX, it.getROI().centroidY)
        }
        region.addChildObjects(objects)
        println "spatialembed: ${objects.size()} objects in ${region.getDisplayedName()}"
    } finally {
        folder.deleteDir()
    }
}
fireHierarchyUpdate()
