"use strict";
(function () {
  const get = (id) => document.getElementById(id);
  const data = JSON.parse(get("viewer-data").textContent);
  const choice = get("viewer-case"), slider = get("viewer-slice"), canvas = get("viewer-canvas");
  const pen = canvas.getContext("2d");
  const on = { truth: get("viewer-truth"), prediction: get("viewer-prediction") };
  let current = null, number = -1, turned = 0;

  function decode(text, length) {
    const bytes = atob(text), values = new Uint8Array(length);
    let at = 0, place = 0;
    while (at < bytes.length) {
      const value = bytes.charCodeAt(at++);
      let run = 0, shift = 0, byte;
      do {
        byte = bytes.charCodeAt(at++);
        run += (byte & 127) * 2 ** shift;
        shift += 7;
      } while (byte & 128);
      values.fill(value, place, place + run);
      place += run;
    }
    return values;
  }

  function show(index, slice) {
    index = Math.min(Math.max(index, 0), data.cases.length - 1);
    const item = data.cases[index];
    if (index !== number) {
      number = index;
      const length = item.width * item.height * item.slices.length, picture = new Image();
      current = { item, picture, truth: decode(item.truth, length), prediction: decode(item.prediction, length) };
      const mine = current;
      picture.onload = () => { if (current === mine) { draw(); } };
      picture.src = item.image;
    }
    choice.value = String(index);
    slider.max = String(item.slices.length - 1);
    slider.value = String(slice === undefined ? worst() : slice);
    slider.parentElement.hidden = item.slices.length < 2;
    get("viewer-worse").disabled = index === 0;
    get("viewer-better").disabled = index === data.cases.length - 1;
    draw();
  }

  function worst() {  // the slice in which truth and prediction differ most
    const size = current.item.width * current.item.height;
    let best = 0, most = -1;
    for (let slice = 0; slice < current.item.slices.length; slice++) {
      let count = 0;
      for (let place = slice * size; place < (slice + 1) * size; place++) {
        count += current.truth[place] !== current.prediction[place] && current.truth[place] !== 255;
      }
      if (count > most) { most = count; best = slice; }
    }
    return best;
  }

  function draw() {
    if (!current) { return; }
    const { item, picture } = current, slice = Number(slider.value), { width, height } = item;
    const room = Math.min(canvas.parentElement.clientWidth, 640);
    const across = Math.min(room / width, 560 / (height * item.aspect)), down = across * item.aspect;
    const fine = window.devicePixelRatio || 1;
    canvas.width = Math.round(width * across * fine);
    canvas.height = Math.round(height * down * fine);
    canvas.style.width = Math.round(width * across) + "px";
    canvas.style.height = Math.round(height * down) + "px";
    pen.setTransform(across * fine, 0, 0, down * fine, 0, 0);  // units: pixels of the slice
    if (picture.complete && picture.naturalWidth) {
      pen.drawImage(picture, 0, slice * height, width, height, 0, 0, width, height);
    }
    const size = width * height;
    const part = (values) => values.subarray(slice * size, (slice + 1) * size);
    if (on.truth.checked) { fill(part(current.truth), item); }
    if (on.prediction.checked) { outline(part(current.prediction), item, across * fine); }
    get("viewer-at").textContent = "slice " + item.slices[slice] + " of axis " + item.axis +
      " (" + (slice + 1) + " of " + item.slices.length + " in this page)";
  }

  function fill(values, item) {
    for (let row = 0; row < item.height; row++) {
      for (let column = 0; column < item.width;) {
        const value = values[row * item.width + column];
        let end = column + 1;
        while (end < item.width && values[row * item.width + end] === value) { end++; }
        if (value === 255) {
          pen.fillStyle = "rgba(150, 150, 150, 0.6)";
          pen.fillRect(column, row, end - column, 1);
        } else if (value) {
          for (const cls of item.sets[value - 1]) {
            pen.fillStyle = data.colours[cls] + "70";
            pen.fillRect(column, row, end - column, 1);
          }
        }
        column = end;
      }
    }
  }

  function outline(values, item, scale) {
    const { width, height, sets } = item;
    for (let cls = 0; cls < data.classes.length; cls++) {
      const member = sets.map((set) => set.includes(cls));
      const inside = (row, column) => row >= 0 && column >= 0 && row < height && column < width &&
        member[values[row * width + column] - 1] === true;
      const path = new Path2D();
      for (let row = 0; row <= height; row++) {
        for (let column = 0; column <= width; column++) {
          const here = inside(row, column);
          if (here !== inside(row - 1, column)) { path.moveTo(column, row); path.lineTo(column + 1, row); }
          if (here !== inside(row, column - 1)) { path.moveTo(column, row); path.lineTo(column, row + 1); }
        }
      }
      pen.lineCap = "round";
      for (const [colour, thickness] of [["rgba(0, 0, 0, 0.6)", 4], [data.colours[cls], 2]]) {
        pen.strokeStyle = colour;
        pen.lineWidth = thickness * (window.devicePixelRatio || 1) / scale;
        pen.stroke(path);
      }
    }
  }

  function step(change) {
    slider.value = String(Number(slider.value) + change);
    draw();
  }

  data.classes.forEach((name, index) => {
    const mark = get("viewer-class-" + index);
    if (mark) { mark.style.background = data.colours[index]; }
  });
  choice.addEventListener("change", () => show(Number(choice.value)));
  slider.addEventListener("input", draw);
  on.truth.addEventListener("change", draw);
  on.prediction.addEventListener("change", draw);
  get("viewer-worse").addEventListener("click", () => show(number - 1));
  get("viewer-better").addEventListener("click", () => show(number + 1));
  canvas.addEventListener("wheel", (event) => {
    if (current && current.item.slices.length > 1) {
      event.preventDefault();
      turned += event.deltaMode === 0 ? event.deltaY : 40 * event.deltaY;  // pixels, or lines
      if (Math.abs(turned) >= 40) {  // a touchpad sends many small events
        step(Math.sign(turned));
        turned = 0;
      }
    }
  }, { passive: false });
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-case]");
    if (link) { show(Number(link.dataset.case)); }
  });
  window.addEventListener("resize", draw);
  show(0);
})();
