// The objects of the open image by spatialembed: ROIs in the ROI Manager and a table of measurements.
//
// Plugins > Macros > Run..., and choose this file. With a selection only its bounding box is looked
// at; of a stack the plane that is shown. The page docs/imagej.md says more.
//
// From another macro the settings are lines of key=value; those left out are as in the dialog:
//     runMacro("/path/to/spatialembed.ijm", "command=/path/to/bin/spatialembed\nmodel=nuclei");

requires("1.52t"); // roiManager("translate")

keys = newArray("command", "model", "diameter", "start", "min_pixels");
titles = newArray("Command", "Model", "Diameter, px", "Start threshold", "Smallest object, px");
values = newArray("spatialembed", "nuclei", "", "", "");

given = getArgument();
if (given == "") {
    Dialog.create("spatialembed");
    Dialog.addMessage("Command: the file bin/spatialembed of the environment it is installed in.\n"
        + "Numbers that are left out are the model's own.");
    for (i = 0; i < keys.length; i++) {
        values[i] = call("ij.Prefs.get", "spatialembed." + keys[i], values[i]);
        Dialog.addString(titles[i], values[i], 40);
    }
    Dialog.show();
    for (i = 0; i < keys.length; i++) {
        values[i] = Dialog.getString();
        call("ij.Prefs.set", "spatialembed." + keys[i], values[i]);
    }
} else {
    lines = split(given, "\n"); // not List.setList, which takes backslashes out of paths
    for (j = 0; j < lines.length; j++)
        for (i = 0; i < keys.length; i++)
            if (startsWith(lines[j], keys[i] + "=")) values[i] = substring(lines[j], lengthOf(keys[i]) + 1);
}
for (i = 2; i < keys.length; i++) if (values[i] == "") values[i] = "null";

if (nImages == 0) exit("spatialembed: open an image first");
image = getImageID();
left = 0;
top = 0;
if (selectionType >= 0) getSelectionBounds(left, top, width, height);

folder = getDirectory("temp") + "spatialembed-" + floor(getTime()) + "-" + floor(1e6 * random);
File.makeDirectory(folder);
file = folder + File.separator + "image.tif";
out = folder + File.separator + "found";
run("Duplicate...", "title=spatialembed");
saveAs("Tiff", file);
close();
selectImage(image);

showStatus("spatialembed: " + values[1] + " at work");
said = exec(values[0], "predict", file, "--model", values[1], "--out", out,
    "--format", "csv,imagej", "--diameter", values[2], "--start", values[3],
    "--min-pixels", values[4]);

within = out + File.separator;
rois = within + "image_rois.zip";
table = within + "objects.csv";
done = false;
if (File.exists(rois)) done = true;
found = 0;
if (done) {
    Table.open(table);
    Table.rename("objects.csv", "spatialembed");
    found = Table.size;
    selectImage(image);
    run("Select None");
    roiManager("reset");
    if (found > 0) {
        roiManager("open", rois);
        if (left > 0 || top > 0) {
            roiManager("deselect");
            roiManager("translate", left, top);
        }
        roiManager("show all without labels");
    }
    showStatus("spatialembed: " + found + " objects");
}
files = getFileList(out);
for (i = 0; i < files.length; i++) removed = File.delete(within + files[i]);
removed = File.delete(within + ".spatialembed-results");
removed = File.delete(out);
removed = File.delete(file);
removed = File.delete(folder);
if (!done) exit("spatialembed found nothing to open; the command said:\n" + said);
