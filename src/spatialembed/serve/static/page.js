// The page of `spatialembed serve`: an image goes to the server, objects come back as COCO's
// run-length masks and are painted here. Text of others (file names, messages) is only ever
// textContent. Paths are relative, so that the page works below a prefix of a proxy.
//
//   file -> POST ?keep=1 -> objects -> labels (H x W) -> three canvases: image, fill, mark
//   sliders -> GET .../maps/ID/instances -> objects ...   the network is not run again

const PALETTE = ['e44a08', '2981fb', 'e5ae00', '02985f', 'fa5d9e', '23fdfb', 'c8f23c', 'b0a2fe',
  'ba49be', 'ffceac']; // that of the overlays which `spatialembed predict` writes
const EXAMPLES = [
  ['Nuclei', 'Many, some touching', 'nuclei'],
  ['Crowded nuclei', 'Large, dim, no room between', 'nuclei'],
  ['Shapes', 'On an uneven ground', 'shapes'],
];
const DOWNLOADS = [
  ['labels', '_labels.png', 'Labels', 'PNG, 16 bit'],
  ['tiff', '_labels.tif', 'Labels', 'TIFF'],
  ['overlay', '_overlay.png', 'Overlay', 'PNG, in colour'],
  ['csv', '_objects.csv', 'Table', 'CSV'],
  ['coco', '_instances.json', 'COCO', 'JSON, masks'],
  ['geojson', '.geojson', 'GeoJSON', 'for QuPath'],
  ['imagej', '_rois.zip', 'ROIs', 'for ImageJ, Fiji'],
  ['json', '.json', 'Everything', 'JSON of the API'],
];
const THRESHOLDS = [
  ['foreground', 'Foreground', 0, 0.99, 0.01, 'Lower it to reach fainter pixels.'],
  ['start', 'Start', 0, 1, 0.005, 'Lower it to accept less certain objects.'],
  ['membership', 'Membership', 0.01, 0.99, 0.01, 'Lower it to make objects wider.'],
  ['min_pixels', 'Smallest object', 0, 500, 1, 'Smaller ones are left out.'],
];
const WAIT = 120; // ms without a move of a slider before the server is asked
const HIGHLIGHT = 0xffffffff;

const $ = (id) => document.getElementById(id);
const result = $('result'), stage = $('stage'), tip = $('tip'), model = $('model');
const layers = ['image', 'fill', 'mark'].map((id) => $(id));

let models = [], limits = {}, token = '';
let picked = null; // {file, name, note, stem}: what is opened, or is on the stage
let shown = null; // what is on the stage, see `run` and `paint`
let work = null; // AbortController of the request whose answer is awaited
let view = null; // {scale, x, y}: image px * scale + (x, y) = canvas px

// ---------------------------------------------------------------- the server

class Failure extends Error {
  constructor(message, remedy, status = 0, after = 0) {
    super(message);
    Object.assign(this, { remedy, status, after });
  }
}

// "try again later" -> "Try again later."; a name at the start keeps its letters.
const sentence = (text) => `${text}`.replace(/^[a-z]+(?=[ ,])/, (word) => word[0].toUpperCase() + word.slice(1))
  .replace(/(?<![.!?])$/, '.');

const gone = () => new Failure('The server does not answer.',
  'See whether spatialembed serve is still running, then try again.', 0, 1);

function failure(status, text, after) {
  let said = {};
  try { said = JSON.parse(text).error ?? {}; } catch { /* a proxy's own page, not our JSON */ }
  const message = said.message ? sentence(said.message) : `The server answered ${status}.`;
  return new Failure(message, said.remedy ? sentence(said.remedy) : '', status, Number(after) || 0);
}

const authorization = () => (token ? { Authorization: `Bearer ${token}` } : {});

async function ask(path, signal) {
  let answer;
  try {
    answer = await fetch(path, { headers: authorization(), signal });
    if (answer.ok) return answer;
  } catch (error) {
    throw error.name === 'AbortError' ? error : gone();
  }
  throw failure(answer.status, await answer.text().catch(() => ''), answer.headers.get('Retry-After'));
}

const json = async (answer) => {
  try { return await answer.json(); } catch (error) { throw error.name === 'AbortError' ? error : gone(); }
};

const media = ({ type }) => (/^image\/(png|jpeg|tiff|webp|bmp|gif)$/.test(type) ? type : 'application/octet-stream');

// XMLHttpRequest, since fetch does not tell how much has been sent.
function send(path, file, signal, progress) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open('POST', path);
    request.setRequestHeader('Content-Type', media(file));
    for (const [name, value] of Object.entries(authorization())) request.setRequestHeader(name, value);
    request.upload.onprogress = (e) => progress(e.lengthComputable ? e.loaded / e.total : null);
    request.upload.onload = () => progress(1);
    request.onerror = () => reject(gone());
    request.onabort = () => reject(new DOMException('', 'AbortError'));
    request.onload = () => {
      const { status, responseText } = request;
      if (status !== 200) return reject(failure(status, responseText, request.getResponseHeader('Retry-After')));
      try {
        resolve([JSON.parse(responseText), request.getResponseHeader('Server-Timing') ?? '']);
      } catch { reject(gone()); }
    };
    signal.addEventListener('abort', () => request.abort());
    request.send(file);
  });
}

const sliders = () => [...document.querySelectorAll('#thresholds input')];
const moved = () => sliders().filter(({ value, dataset }) => value !== dataset.own);

function query(more) {
  const given = new URLSearchParams(more);
  for (const input of moved()) given.set(input.name, input.value);
  return given;
}

const kept = () => `${shown.path}/maps/${shown.maps}`;

// ---------------------------------------------------------------- start: models, examples

// Lists the models, then does what waited for them; asks again while one of them starts.
async function begin(then) {
  let list;
  try {
    list = await json(await ask('v1/models'));
  } catch (error) {
    return fail(error, () => begin(then));
  }
  settle();
  models = list.models;
  limits = list;
  model.replaceChildren(...models.map(({ name }) => new Option(name, name)));
  states();
  model.disabled = models.length < 2;
  if (limits.max_bytes) {
    $('limits').textContent = `PNG, JPEG, TIFF, WebP, BMP or GIF, up to ${Math.floor(limits.max_bytes / 2 ** 20)} MiB`
      + (limits.max_pixels ? ` and ${Math.floor(limits.max_pixels / 1e6)} megapixels` : '');
  }
  describe();
  then?.();
}

let watch = 0;

async function states() {
  const mine = ++watch; // ends the one before
  for (;;) {
    for (const option of model.options) {
      const { state = 'down' } = models.find(({ name }) => name === option.value) ?? {};
      option.textContent = state === 'ready' ? option.value : `${option.value} (${state})`;
    }
    if (models.every(({ state }) => state === 'ready')) return;
    await new Promise((resolve) => { setTimeout(resolve, 3000); });
    if (mine !== watch) return;
    const unknown = !chosen()?.thresholds;
    try { models = (await json(await ask('v1/models'))).models; } catch { /* the next time, perhaps */ }
    if (unknown) describe();
  }
}

const chosen = () => models.find(({ name }) => name === model.value);

// Chooses a model, with its own thresholds if it is another one.
function select(name) {
  if (model.value === name || !models.some((known) => known.name === name)) return;
  model.value = name;
  describe();
}

function describe() {
  $('about').textContent = chosen()?.description ?? '';
  const own = chosen()?.thresholds;
  $('thresholds').replaceChildren(...(own ? THRESHOLDS.map((row) => slider(row, own[row[0]])) : []));
  $('reset').disabled = true;
}

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  Object.assign(made, attributes);
  made.append(...children);
  return made;
}

function slider([name, title, min, max, step, why], own) {
  const top = name === 'min_pixels' ? Math.max(max, own * 4) : max;
  const id = `threshold-${name}`;
  const input = element('input', { id, name, type: 'range', min, max: top, step });
  input.value = own;
  input.dataset.own = input.value; // on the grid of steps: as long as it stays, the server takes its own
  input.setAttribute('aria-describedby', `${id}-why`);
  const label = element('label', { htmlFor: id, textContent: title });
  const output = element('output', { htmlFor: id });
  const small = element('small', { id: `${id}-why`, textContent: why });
  const row = element('div', { className: 'slider' }, label, output, input, small);
  write(input, output);
  input.addEventListener('input', () => { write(input, output); later(); });
  return row;
}

function write(input, output) {
  const value = Number(input.value);
  output.textContent = { min_pixels: `${value} px`, opacity: `${value} %`, outline: `${value} px` }[input.name]
    ?? value.toFixed(Math.abs(value * 100 - Math.round(value * 100)) > 1e-9 ? 3 : 2);
}

// ---------------------------------------------------------------- opening an image

function open([file, ...others]) {
  const name = (file.name || 'pasted.png').slice(0, 200);
  const note = others.length ? [`the first of ${others.length + 1} files`] : [];
  picked = { file, name, note, stem: name.replace(/\.[^.]*$/, '') || 'image' };
  return run();
}

async function example(number, suits) {
  select(suits);
  const mine = start(`Opening example ${number}`);
  try {
    const blob = await (await ask(`examples/${number}.png`, mine.signal)).blob();
    const name = `${EXAMPLES[number - 1][0].toLowerCase().replace(' ', '_')}.png`;
    await open([new File([blob], name, { type: 'image/png' })]);
  } catch (error) {
    if (mine === work) fail(error, () => example(number, suits));
  }
}

// One piece of work at a time: whatever begins ends the one before.
function start(phase) {
  work?.abort();
  clearTimeout(timer);
  work = new AbortController();
  result.removeAttribute('aria-busy');
  settle();
  screen('busy');
  say(phase, null);
  return work;
}

async function run() {
  const opened = picked, { file, name } = opened;
  const mine = start(`Sending ${name}`);
  if (!models.length) return begin(run);
  const wanted = model.value, path = `v1/models/${encodeURIComponent(wanted)}`;
  try {
    if (file.size === 0) throw new Failure(`${name}: the file is empty.`, 'Choose an image.', 422);
    if (file.size > limits.max_bytes) {
      throw new Failure(`${name}: ${Math.ceil(file.size / 2 ** 20)} MiB are more than the server takes.`,
        `Send at most ${Math.floor(limits.max_bytes / 2 ** 20)} MiB: crop the image or save it in grey.`, 413);
    }
    let sent = performance.now();
    const own = drawable(file); // decodes while the server works
    const progress = (share) => {
      sent = performance.now();
      if (mine !== work) return;
      if (share === 1) say(`Looking for objects in ${name}`, null);
      else say(`Sending ${name}${share === null ? '' : `: ${Math.round(share * 100)} %`}`, share);
    };
    const [found, timing] = await send(`${path}/instances?${query({ keep: 1, name })}`, file, mine.signal, progress);
    const took = performance.now() - sent;
    let picture = await own;
    const { width, height } = found.image;
    if (found.maps && !(picture && picture.width === width && picture.height === height)) {
      picture = await server_picture(`${path}/maps/${found.maps}/image`, mine.signal);
    }
    if (mine !== work) return;
    work = null;
    forget();
    shown = { path, maps: found.maps, name, picture, width, height, model: wanted, opened };
    screen('done');
    resize();
    const unseen = picture ? [] : ['without the image, which the browser cannot show'];
    found.warnings = [...opened.note, ...unseen, ...found.warnings ?? []];
    paint(found, duration(timing, took));
    stage.focus({ preventScroll: true });
    announce(`${$('count').textContent} ${$('noun').textContent} found in ${name}. ${found.warnings.join('. ')}`);
  } catch (error) {
    if (mine === work) fail(error, () => { picked = opened; select(wanted); run(); });
  }
}

// What a browser shows as the server sees it: no TIFF, and no PNG of 16 bits, which it would darken.
async function drawable(file) {
  const head = new Uint8Array(await file.slice(0, 26).arrayBuffer());
  if (head[0] === 0x89 && head[24] === 16) return null;
  try { return await createImageBitmap(file); } catch { return null; }
}

async function server_picture(path, signal) {
  try {
    return await createImageBitmap(await (await ask(path, signal)).blob());
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    return null; // the objects can be shown without it
  }
}

// "wait;dur=0.1, decode;dur=3, predict;dur=212.5" -> "230 ms: decode 3.0, predict 213"
function duration(timing, took) {
  const parts = [...timing.matchAll(/([\w-]+)\s*;[^,]*?dur=([\d.]+)/g)].map(([, what, ms]) => [what, Number(ms)]);
  const all = Math.max(took, parts.reduce((sum, [, ms]) => sum + ms, 0)); // both are measured
  const [unit, per] = all < 10000 ? ['ms', 1] : ['s', 1000];
  const long = parts.filter(([, ms]) => ms >= (per === 1 ? 1 : 100)).map(([what, ms]) => `${what} ${round(ms / per)}`);
  return `${round(all / per)} ${unit}${long.length ? `: ${long.join(', ')}` : ''}`;
}

const round = (value) => (value < 10 ? value.toFixed(1) : Math.round(value).toLocaleString('en'));

// Tells the server that the kept maps are not needed any more; it would find out by itself, later.
function forget() {
  if (shown?.maps) fetch(kept(), { method: 'DELETE', headers: authorization(), keepalive: true }).catch(() => {});
}

// ---------------------------------------------------------------- thresholds, without the network

let timer = 0;

function later() {
  $('reset').disabled = !moved().length;
  if (!shown) return;
  clearTimeout(timer);
  timer = setTimeout(again, shown.maps ? WAIT : 8 * WAIT); // 8: the network is run
}

async function again() {
  work?.abort();
  if (!shown.maps) return run(); // too large to be kept
  const mine = (work = new AbortController());
  result.setAttribute('aria-busy', 'true');
  const sent = performance.now();
  try {
    const answer = await ask(`${kept()}/instances?${query()}`, mine.signal);
    const found = await json(answer);
    if (mine !== work) return; // a later question has been asked
    settle();
    paint(found, duration(answer.headers.get('Server-Timing') ?? '', performance.now() - sent));
    announce(`${$('count').textContent} ${$('noun').textContent}`);
  } catch (error) {
    if (mine !== work) return;
    if (error.status === 410) return run();
    settle();
    tell(error, again);
  } finally {
    if (mine === work) { work = null; result.removeAttribute('aria-busy'); }
  }
}

// ---------------------------------------------------------------- what is said

function screen(state) {
  document.body.dataset.state = state;
  $('start').hidden = state !== 'empty';
  $('busy').hidden = state !== 'busy';
  result.hidden = state !== 'done';
}

function say(phase, share) {
  if ($('phase').textContent !== phase) $('phase').textContent = phase;
  if (share === null || share === 1) $('progress').removeAttribute('value');
  else $('progress').value = share;
}

function announce(text) { $('said').textContent = text; }

let retry = null, countdown = 0;

function settle() {
  clearInterval(countdown);
  $('failure').hidden = true;
}

// To what was there before the image that did not come.
function back() {
  if (shown) {
    picked = shown.opened;
    select(shown.model);
  }
  screen(shown ? 'done' : 'empty');
}

// An error where an image was to come.
function fail(error, action) {
  work = null;
  back();
  if (error.name !== 'AbortError') tell(error, action);
}

function tell(error, action) {
  if (!(error instanceof Failure)) console.error(error);
  const known = error instanceof Failure ? error : new Failure(`The page failed: ${error.message}`, 'Load it again.');
  const box = $('failure');
  box.querySelector('.failure-what').textContent = known.message;
  box.querySelector('.failure-remedy').textContent = known.remedy;
  $('dismiss').hidden = known.status === 401;
  $('token-form').hidden = known.status !== 401;
  retry = action;
  const button = $('again');
  button.hidden = !([0, 408, 429].includes(known.status) || known.status >= 500) || !(error instanceof Failure);
  let left = Math.min(known.after, 600);
  const tick = () => {
    button.disabled = left > 0;
    button.textContent = left > 0 ? `Try again in ${left} s` : 'Try again';
    if (left-- <= 0) clearInterval(countdown);
  };
  clearInterval(countdown);
  tick();
  countdown = setInterval(tick, 1000);
  box.hidden = false;
  if (document.activeElement === document.body) box.focus({ preventScroll: true });
  box.scrollIntoView({ block: 'nearest' });
}

// ---------------------------------------------------------------- objects

// Labels (H x W) of the objects, by COCO's compressed run lengths: column-major, background first,
// five bits a character, from the fourth count on as difference to the count two before.
function labels_of(found, width, height) {
  const labels = new Uint32Array(width * height);
  for (const { label, segmentation: { counts } } of found) {
    const before = [0, 0];
    let place = 0, at = 0;
    for (let i = 0; at < counts.length; i++) {
      let value = 0, shift = 0, code;
      do {
        code = counts.charCodeAt(at++) - 48;
        value |= (code & 0x1f) << shift;
        shift += 5;
      } while (code & 0x20);
      if (code & 0x10) value |= -1 << shift;
      if (i > 2) value += before[i & 1];
      before[i & 1] = value;
      if (i & 1) {
        let x = Math.floor(place / height), y = place - x * height;
        for (let end = place + value; place < end; place++) {
          labels[y * width + x] = label;
          if (++y === height) { y = 0; x++; }
        }
      } else place += value;
    }
  }
  return labels;
}

// A colour of the palette each: one that no object with a box near has, else the one least used
// there; which one is tried first hangs on the place, so that an object keeps its own when
// thresholds change.
function colours_of(found) {
  const cell = 32, grid = new Map(), colours = new Uint32Array(found.length + 1);
  const abgr = PALETTE.map((hex) => (0xff000000 | parseInt(hex.slice(4) + hex.slice(2, 4) + hex.slice(0, 2), 16)) >>> 0);
  found.forEach(({ label, bbox: [x, y, w, h] }) => {
    const used = new Uint16Array(PALETTE.length), cells = [];
    for (let j = Math.floor((y - 4) / cell); j <= (y + h + 4) / cell; j++) {
      for (let i = Math.floor((x - 4) / cell); i <= (x + w + 4) / cell; i++) {
        const key = j * 65536 + i;
        cells.push(key);
        for (const taken of grid.get(key) ?? []) used[taken]++;
      }
    }
    let best = (Math.floor((x + w / 2) / 16) * 7 + Math.floor((y + h / 2) / 16) * 3) % PALETTE.length;
    for (let k = 1, first = best; k < PALETTE.length && used[best]; k++) {
      const next = (first + k * 3) % PALETTE.length; // 3 and 10 share no factor
      if (used[next] < used[best]) best = next;
    }
    for (const key of cells) grid.has(key) ? grid.get(key).push(best) : grid.set(key, [best]);
    colours[label] = abgr[best];
  });
  return colours;
}

// Reading order: rows as high as a usual object, from left to right.
function order_of(found) {
  const heights = found.map(({ bbox }) => bbox[3]).sort((a, b) => a - b);
  const row = Math.max(1, heights[heights.length >> 1] ?? 1);
  const key = ({ bbox: [x, y, w, h] }) => [Math.floor((y + h / 2) / row), x + w / 2];
  return found.map((object) => [key(object), object.label])
    .sort(([a], [b]) => a[0] - b[0] || a[1] - b[1]).map(([, label]) => label);
}

function paint(found, took) {
  const objects = found.instances;
  Object.assign(shown, {
    objects,
    labels: labels_of(objects, shown.width, shown.height),
    colours: colours_of(objects),
    order: order_of(objects),
    current: 0, // label that is pointed at; 0: none
    bin: -1, // of the histogram
  });
  $('name').textContent = $('name').title = shown.name;
  $('size').textContent = `${shown.height} × ${shown.width} px`;
  $('size').title = 'height × width';
  $('count').textContent = objects.length.toLocaleString('en');
  $('noun').textContent = objects.length === 1 ? 'object' : 'objects';
  $('time').textContent = [took, ...(found.warnings ?? [])].join(' · ');
  $('truncated').hidden = !found.truncated;
  $('none').hidden = objects.length > 0;
  $('none').textContent = moved().length ? 'Nothing passes these thresholds: reset or lower them.'
    : `${shown.model} sees nothing of its kind here.${models.length > 1 ? ' Try another model.' : ''} `
      + 'Lower thresholds help with faint objects alone.';
  stage.setAttribute('aria-label', `${shown.name}: ${objects.length} ${$('noun').textContent}`);
  sample();
  draw_fill();
  draw_mark();
  point(0);
  histogram();
}

// ---------------------------------------------------------------- the stage

function resize() {
  if (!shown || result.hidden) return;
  const width = stage.clientWidth, ratio = Math.min(devicePixelRatio || 1, 2);
  const room = Math.max(280, innerHeight * (innerWidth < 960 ? 0.7 : 0.8));
  const height = Math.round(Math.max(200, Math.min(width * shown.height / shown.width, room))); // has room for the tip
  stage.style.height = `${height}px`;
  stage.classList.toggle('low', height <= 0.45 * innerHeight); // stays in sight above the sliders
  for (const layer of layers) {
    layer.width = Math.max(1, Math.round(width * ratio));
    layer.height = Math.max(1, Math.round(height * ratio));
  }
  fit();
}

const smallest = () => Math.min(layers[0].width / shown.width, layers[0].height / shown.height);

function fit() {
  look(smallest(), shown.width / 2, shown.height / 2);
}

// Shows (cx, cy) of the image in the middle, or as near to it as the image has no gap at an edge.
function look(scale, cx, cy) {
  const { width, height } = layers[0], least = smallest();
  scale = Math.max(least, Math.min(scale, Math.max(least, 40)));
  const place = (centre, side, of) => (of * scale <= side + 0.5 ? (side - of * scale) / 2
    : Math.min(0, Math.max(side - of * scale, side / 2 - centre * scale)));
  view = { scale, x: place(cx, width, shown.width), y: place(cy, height, shown.height) };
  stage.classList.toggle('zoomed', scale > least * 1.001);
  draw_image();
  if (shown.labels) { sample(); draw_fill(); draw_mark(); }
}

function zoom(factor, px = layers[0].width / 2, py = layers[0].height / 2) {
  const { width, height } = layers[0], scale = Math.max(smallest(), Math.min(view.scale * factor, Math.max(smallest(), 40)));
  const ix = (px - view.x) / view.scale, iy = (py - view.y) / view.scale; // stays where it is
  look(scale, ix - (px - width / 2) / scale, iy - (py - height / 2) / scale);
}

function draw_image() {
  const context = layers[0].getContext('2d');
  context.clearRect(0, 0, layers[0].width, layers[0].height);
  if (!shown.picture) return;
  context.imageSmoothingEnabled = view.scale < 4;
  context.imageSmoothingQuality = 'high';
  context.drawImage(shown.picture, view.x, view.y, shown.width * view.scale, shown.height * view.scale);
}

// The label under each pixel of the canvas: all that is painted costs the canvas, not the image.
function sample() {
  const { width, height } = layers[1], { scale, x, y } = view;
  const seen = new Uint32Array(width * height), columns = new Int32Array(width);
  for (let i = 0; i < width; i++) {
    const column = Math.floor((i + 0.5 - x) / scale);
    columns[i] = column >= 0 && column < shown.width ? column : -1;
  }
  for (let j = 0; j < height; j++) {
    const row = Math.floor((j + 0.5 - y) / scale);
    if (row < 0 || row >= shown.height) continue;
    for (let i = 0; i < width; i++) if (columns[i] >= 0) seen[j * width + i] = shown.labels[row * shown.width + columns[i]];
  }
  shown.seen = seen;
}

// Whether another label begins within `reach` px of place p: eight places around, a circle enough.
function steps(reach, width) {
  const slant = Math.max(1, Math.round(reach * 0.7));
  return [reach, -reach, reach * width, -reach * width, slant + slant * width, slant - slant * width,
    -slant + slant * width, -slant - slant * width];
}

function draw_fill() {
  const { width, height } = layers[1], { seen, colours } = shown;
  const ratio = width / stage.clientWidth;
  const alpha = Math.round(Number($('opacity').value) * 2.55), outline = Math.round(Number($('outline').value) * ratio);
  const context = layers[1].getContext('2d'), data = context.createImageData(width, height);
  const pixels = new Uint32Array(data.data.buffer);
  const around = outline ? steps(outline, width) : [];
  const whole = colours, thin = colours.map((colour) => ((colour & 0xffffff) | (alpha << 24)) >>> 0);
  for (let p = 0; p < seen.length; p++) {
    const label = seen[p];
    if (!label) continue;
    let edge = false;
    for (const step of around) if (seen[p + step] !== label) { edge = true; break; }
    pixels[p] = edge ? whole[label] : thin[label];
  }
  context.putImageData(data, 0, 0);
}

// The object pointed at: brighter, with a white rim that is dark outside. Of a bar of the histogram:
// everything else is darkened.
function draw_mark() {
  const { width, height } = layers[2], { seen, current, bin } = shown;
  const context = layers[2].getContext('2d');
  context.clearRect(0, 0, width, height);
  if (!current && bin < 0) return;
  const data = context.createImageData(width, height), pixels = new Uint32Array(data.data.buffer);
  if (current) {
    const ratio = width / stage.clientWidth, rim = steps(Math.round(2 * ratio), width), halo = steps(Math.round(4 * ratio), width);
    const [x0, y0, x1, y1] = box_on_canvas(shown.objects[current - 1], 6 * ratio);
    for (let y = y0; y < y1; y++) {
      for (let p = y * width + x0, end = y * width + x1; p < end; p++) {
        if (seen[p] === current) pixels[p] = 0x40ffffff;
        else if (rim.some((step) => seen[p + step] === current)) pixels[p] = HIGHLIGHT;
        else if (halo.some((step) => seen[p + step] === current)) pixels[p] = 0xa0000000;
      }
    }
  } else {
    const inside = new Uint8Array(shown.objects.length + 1);
    for (const label of shown.bins[bin].labels) inside[label] = 1;
    for (let p = 0; p < seen.length; p++) if (!inside[seen[p]]) pixels[p] = 0xb0000000;
  }
  context.putImageData(data, 0, 0);
}

function box_on_canvas({ bbox: [x, y, w, h] }, margin = 0) {
  const { width, height } = layers[0], { scale } = view;
  return [Math.max(0, Math.floor(x * scale + view.x - margin)), Math.max(0, Math.floor(y * scale + view.y - margin)),
    Math.min(width, Math.ceil((x + w) * scale + view.x + margin)), Math.min(height, Math.ceil((y + h) * scale + view.y + margin))];
}

// ---------------------------------------------------------------- one object

function facts({ label, class: name, score, expected_iou: iou, area }) {
  return [
    ['class', String(name)],
    ['score', score.toFixed(3)],
    ...(iou === undefined || iou === null ? [] : [['expected IoU', iou.toFixed(2)]]),
    ['area', `${area.toLocaleString('en')} px`],
  ];
}

// label 0: none. at: [x, y] of the pointer in CSS px of the stage; without it the tip stands by the object.
function point(label, at) {
  const known = label && label === shown.current && !tip.hidden;
  if (label !== shown.current || (label && shown.bin >= 0)) {
    shown.current = label;
    choose(-1);
    draw_mark();
  }
  tip.hidden = !label;
  if (!label) return;
  const object = shown.objects[label - 1];
  if (!known) {
    tip.replaceChildren(element('dd', { className: 'title', textContent: `Object ${label}` }),
      ...facts(object).flatMap(([what, value]) => [element('dt', { textContent: what }), element('dd', { textContent: value })]));
  }
  const ratio = layers[0].width / stage.clientWidth;
  const [x0, y0, x1, y1] = box_on_canvas(object, 6 * ratio).map((side) => side / ratio);
  const [x, y] = at ? [Math.max(at[0], Math.min(x1, at[0] + 64)), at[1]] : [x1, (y0 + y1) / 2]; // beside a small object
  const { offsetWidth: w, offsetHeight: h } = tip, gap = at ? 16 : 4;
  const left = x + gap + w <= stage.clientWidth ? x + gap : (at ? Math.min(at[0], Math.max(x0, at[0] - 64)) : x0) - gap - w;
  tip.style.left = `${Math.max(4, Math.min(left, stage.clientWidth - w - 4))}px`;
  tip.style.top = `${Math.max(4, Math.min(y - h / 2, stage.clientHeight - h - 4))}px`;
}

// By keyboard: to the object at this place of the reading order, moved into sight and read aloud.
function walk(place) {
  const { order, objects } = shown;
  if (!order.length) return announce('No objects');
  const at = (place + order.length) % order.length, label = order[at];
  const { bbox: [x, y, w, h] } = objects[label - 1];
  const [x0, y0, x1, y1] = [x * view.scale + view.x, y * view.scale + view.y, (x + w) * view.scale + view.x, (y + h) * view.scale + view.y];
  if (x0 < 0 || y0 < 0 || x1 > layers[0].width || y1 > layers[0].height) look(view.scale, x + w / 2, y + h / 2);
  point(label);
  announce(`${at + 1} of ${order.length}: object ${label}, ${facts(objects[label - 1]).map((fact) => fact.join(' ')).join(', ')}`);
}

// ---------------------------------------------------------------- histogram of areas

// Bars of equal width in px, or of equal ratio where a few objects are far larger than most.
function bins_of(objects) {
  const areas = objects.map(({ area }) => area).sort((a, b) => a - b);
  const low = areas[0], high = areas[areas.length - 1], middle = areas[areas.length >> 1];
  const logarithmic = high > 8 * middle && low > 0;
  const count = Math.max(1, Math.min(24, Math.ceil(2 * Math.cbrt(areas.length)), high - low + 1));
  const to = logarithmic ? Math.log : Number, from = logarithmic ? Math.exp : Number;
  const first = to(low), step = (to(high + 1) - first) / count;
  const bins = Array.from({ length: count }, (_, i) => ({
    from: Math.ceil(from(first + i * step) - 1e-6), to: Math.ceil(from(first + (i + 1) * step) - 1e-6) - 1, labels: [],
  }));
  for (const { area, label } of objects) bins[Math.min(count - 1, Math.floor((to(area) - first) / step + 1e-9))].labels.push(label);
  return { bins, low, high, middle, logarithmic };
}

function svg(tag, attributes) {
  const made = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function histogram() {
  const chart = $('histogram'), { objects } = shown;
  chart.replaceChildren();
  $('areas').hidden = !objects.length;
  shown.bins = [];
  if (!objects.length) return;
  const { bins, low, high, middle, logarithmic } = bins_of(objects);
  shown.bins = bins;
  const width = chart.clientWidth || 300, height = chart.clientHeight || 104, floor = height - 20;
  const most = Math.max(...bins.map(({ labels }) => labels.length)), wide = width / bins.length;
  chart.setAttribute('viewBox', `0 0 ${width} ${height}`);
  bins.forEach(({ labels }, i) => {
    const tall = labels.length ? Math.max(2, labels.length / most * (floor - 4)) : 0;
    const group = svg('g', { 'data-bin': i });
    group.append(
      svg('rect', { class: 'bar-of', x: i * wide + 1, y: floor - tall, width: Math.max(1, wide - 2), height: tall, rx: Math.min(2, wide / 4) }),
      svg('rect', { class: 'hit', x: i * wide, y: 0, width: wide, height: floor }),
    );
    chart.append(group);
  });
  chart.append(svg('line', { class: 'base', x1: 0, x2: width, y1: floor + 0.5, y2: floor + 0.5 }));
  for (const [x, anchor, text] of [[0, 'start', low], [width, 'end', `${high.toLocaleString('en')} px`]]) {
    const label = svg('text', { x, y: height - 4, 'text-anchor': anchor });
    label.textContent = text.toLocaleString('en');
    chart.append(label);
  }
  shown.areas = `Median ${middle.toLocaleString('en')} px${logarithmic ? ', bars of equal ratio' : ''}`;
  $('areas-text').textContent = shown.areas;
}

function choose(bin) {
  if (bin === shown.bin) return;
  shown.bin = bin;
  document.querySelectorAll('#histogram g').forEach((group, i) => group.classList.toggle('chosen', i === bin));
  $('areas-text').textContent = bin < 0 ? shown.areas ?? '' : about(shown.bins[bin]);
}

const about = ({ from, to, labels }) => `${labels.length} ${labels.length === 1 ? 'object' : 'objects'} of `
  + `${from.toLocaleString('en')}${to > from ? ` to ${to.toLocaleString('en')}` : ''} px`;

function bar(bin) {
  if (bin >= 0 && shown.current) point(0);
  choose(bin);
  draw_mark();
}

// ---------------------------------------------------------------- downloads

async function download(format, suffix) {
  const { maps, path } = shown;
  try {
    const where = maps ? `${kept()}/instances?${query({ format })}` : `${path}/instances?${query({ format, name: picked.name })}`;
    let blob;
    if (maps) blob = await (await ask(where)).blob();
    else {
      const answer = await fetch(where, { method: 'POST', body: picked.file, headers: { ...authorization(), 'Content-Type': media(picked.file) } }).catch(() => { throw gone(); });
      if (!answer.ok) throw failure(answer.status, await answer.text(), answer.headers.get('Retry-After'));
      blob = await answer.blob();
    }
    const url = URL.createObjectURL(blob);
    element('a', { href: url, download: `${picked.stem}${blob.type === 'image/tiff' ? suffix.replace('.png', '.tif') : suffix}` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 60000);
    settle();
  } catch (error) {
    if (error.status === 410) { await run(); if (shown?.maps) return download(format, suffix); }
    else tell(error, () => { settle(); download(format, suffix); });
  }
}

// ---------------------------------------------------------------- what people do

$('examples').append(...EXAMPLES.map(([title, text, suits], i) => element('li', {},
  element('button', { type: 'button', onclick: () => example(i + 1, suits) },
    element('img', { src: `examples/${i + 1}.png`, alt: '', width: 240, height: 180 }),
    element('b', { textContent: title }), element('small', { textContent: text })))));

$('downloads').append(...DOWNLOADS.map(([format, suffix, title, text]) => element('li', {},
  element('button', { type: 'button', className: 'button', onclick: () => download(format, suffix) },
    element('span', { textContent: title }), element('small', { textContent: text })))));

$('file').addEventListener('change', ({ target }) => {
  const [file] = target.files;
  target.value = ''; // so that the same file can be chosen again
  if (file) open([file]);
});
model.addEventListener('change', () => { describe(); if (picked && shown) run(); });
$('cancel').addEventListener('click', () => { work?.abort(); work = null; back(); (shown ? stage : $('file')).focus(); });
$('dismiss').addEventListener('click', settle);
$('again').addEventListener('click', () => { settle(); retry?.(); });
$('token-form').addEventListener('submit', (event) => {
  event.preventDefault();
  token = $('token').value.trim();
  settle();
  retry?.();
});
$('reset').addEventListener('click', () => {
  for (const input of sliders()) {
    input.value = input.dataset.own;
    write(input, input.parentElement.querySelector('output'));
  }
  sliders()[0].focus(); // the button goes
  later();
});
for (const id of ['opacity', 'outline']) {
  const output = $(id).parentElement.querySelector('output');
  write($(id), output);
  $(id).addEventListener('input', () => { write($(id), output); if (shown) draw_fill(); });
}

document.addEventListener('paste', ({ clipboardData }) => {
  if (clipboardData?.files.length) open(clipboardData.files);
});
let depth = 0; // dragenter and dragleave come for every element on the way
const files = ({ dataTransfer }) => dataTransfer?.types.includes('Files');
const over = (change) => { depth = Math.max(0, depth + change); $('veil').hidden = !depth; };
addEventListener('dragenter', (event) => { if (files(event)) { event.preventDefault(); over(1); } });
addEventListener('dragleave', (event) => { if (files(event)) over(-1); });
addEventListener('dragover', (event) => { if (files(event)) event.preventDefault(); });
addEventListener('drop', (event) => {
  if (!files(event)) return;
  event.preventDefault();
  over(-depth);
  if (event.dataTransfer.files.length) open(event.dataTransfer.files);
});

function under(event) {
  const box = stage.getBoundingClientRect(), ratio = layers[0].width / stage.clientWidth;
  const at = [event.clientX - box.left, event.clientY - box.top];
  const x = Math.floor(at[0] * ratio), y = Math.floor(at[1] * ratio);
  const inside = x >= 0 && y >= 0 && x < layers[0].width && y < layers[0].height;
  return [inside ? shown.seen[y * layers[0].width + x] : 0, at, ratio];
}

let drag = null; // {x, y, view}: where a finger or button went down
stage.addEventListener('pointerdown', (event) => {
  if (event.button) return;
  drag = { x: event.clientX, y: event.clientY, view };
  const [label, at] = under(event);
  if (event.pointerType !== 'mouse') point(label, at);
  else if (stage.classList.contains('zoomed')) stage.setPointerCapture(event.pointerId);
});
stage.addEventListener('pointermove', (event) => {
  if (!shown) return;
  if (drag && stage.classList.contains('zoomed')) {
    stage.classList.add('dragging');
    const ratio = layers[0].width / stage.clientWidth, { scale, x, y } = drag.view;
    const [left, top] = [x + (event.clientX - drag.x) * ratio, y + (event.clientY - drag.y) * ratio];
    look(scale, (layers[0].width / 2 - left) / scale, (layers[0].height / 2 - top) / scale);
    return point(0);
  }
  if (event.pointerType === 'mouse') { const [label, at] = under(event); point(label, at); }
});
const release = () => { drag = null; stage.classList.remove('dragging'); };
addEventListener('pointerup', release);
addEventListener('pointercancel', release);
stage.addEventListener('pointerleave', (event) => { if (shown && event.pointerType === 'mouse') point(0); });
stage.addEventListener('wheel', (event) => {
  if (!event.ctrlKey && !event.metaKey) return; // the page scrolls
  event.preventDefault();
  const [, at, ratio] = under(event);
  zoom(Math.exp(-event.deltaY / 200), at[0] * ratio, at[1] * ratio);
}, { passive: false });
stage.addEventListener('keydown', (event) => {
  if (!shown || event.ctrlKey || event.metaKey || event.altKey) return;
  const at = shown.order.indexOf(shown.current), none = at < 0;
  const act = {
    ArrowRight: () => walk(at + 1), ArrowDown: () => walk(at + 1),
    ArrowLeft: () => walk(none ? -1 : at - 1), ArrowUp: () => walk(none ? -1 : at - 1),
    PageDown: () => walk(Math.min(at + 10, shown.order.length - 1)), PageUp: () => walk(Math.max(at - 10, 0)),
    Home: () => walk(0), End: () => walk(-1), Escape: () => point(0),
    '+': () => zoom(1.5), '=': () => zoom(1.5), '-': () => zoom(1 / 1.5), '0': fit,
  }[event.key];
  if (!act) return;
  event.preventDefault();
  act();
});
$('in').addEventListener('click', () => zoom(1.5));
$('out').addEventListener('click', () => zoom(1 / 1.5));
$('fit').addEventListener('click', fit);

const chart = $('histogram');
chart.addEventListener('pointermove', ({ target }) => bar(Number(target.closest('g')?.dataset.bin ?? -1)));
chart.addEventListener('pointerdown', ({ target }) => bar(Number(target.closest('g')?.dataset.bin ?? -1)));
chart.addEventListener('pointerleave', () => bar(-1));
chart.addEventListener('blur', () => { if (shown) bar(-1); });
chart.addEventListener('keydown', (event) => {
  const count = shown?.bins.length;
  const step = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
  if (!count || (!step && event.key !== 'Escape')) return;
  event.preventDefault();
  if (!step) return bar(-1);
  bar(shown.bin < 0 && step < 0 ? count - 1 : Math.max(0, Math.min(count - 1, shown.bin + step)));
  announce(about(shown.bins[shown.bin]));
});

let wide = 0;
new ResizeObserver(() => {
  if (!shown || result.hidden || stage.clientWidth === wide) return;
  wide = stage.clientWidth;
  resize();
  histogram();
}).observe(result);
addEventListener('pagehide', forget);

begin();
