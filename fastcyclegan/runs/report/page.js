"use strict";
(() => {
  const svg = "http://www.w3.org/2000/svg";
  const data = JSON.parse(document.getElementById("data").textContent);
  document.documentElement.classList.add("scripted");

  // The images: one slider, one figure of each run at a time.
  const slider = document.getElementById("step");
  const count = (step) => step.toLocaleString("en-US");

  function showImages() {
    const steps = data.steps, chosen = Number(slider.value), step = steps[chosen];
    for (const group of document.querySelectorAll(".pictures")) {
      const figures = [...group.querySelectorAll(".picture")];
      const until = figures.filter((figure) => Number(figure.dataset.step) <= step);
      const shown = until.at(-1) ?? figures[0];
      for (const figure of figures) figure.hidden = figure !== shown;
    }
    slider.setAttribute("aria-valuetext", `step ${count(step)}`);
    document.getElementById("step-shown").value = `step ${count(step)}`;
    for (const button of document.querySelectorAll("[data-move]")) {
      const next = chosen + Number(button.dataset.move);
      button.disabled = next < 0 || next >= steps.length;
    }
  }

  if (slider) {
    slider.addEventListener("input", () => {
      showImages();
      readAt(data.steps[Number(slider.value)]);
    });
    for (const button of document.querySelectorAll("[data-move]")) {
      button.addEventListener("click", () => {
        slider.value = Number(slider.value) + Number(button.dataset.move);
        slider.dispatchEvent(new Event("input"));
      });
    }
  }

  // The curves: values are read off all of them at one step.
  const at = document.getElementById("at");
  const { left, right, top, bottom, width } = data.geometry;

  // The last point that is not behind the step, -1 if there is none.
  function lastUpTo(steps, step) {
    let low = 0, high = steps.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (steps[middle] <= step) low = middle + 1; else high = middle;
    }
    return low - 1;
  }

  function place(value, [low, high, logarithmic]) {
    if (logarithmic) [value, low, high] = [value, low, high].map((v) => Math.log10(Math.max(v, 1e-300)));
    return bottom + (value - low) / (high - low) * (top - bottom);
  }

  function written(value) {
    const size = Math.abs(value);
    const text = size !== 0 && (size < 1e-4 || size >= 1e7)
      ? value.toExponential(3)
      : value.toLocaleString("en-US", { maximumSignificantDigits: 4 });
    return text.replaceAll("-", "\u2212");
  }

  function drawn(name, attributes) {
    const element = document.createElementNS(svg, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    return element;
  }

  function readAt(step) {
    if (!at) return;
    at.value = Math.round(step / data.last * 1000);
    at.setAttribute("aria-valuetext", `step ${count(Math.round(step))}`);
    document.getElementById("at-step").value = count(Math.round(step));
    for (const [key, chart] of Object.entries(data.charts)) {
      const figure = document.getElementById(key), cursor = figure.querySelector(".cursor");
      const outputs = figure.querySelectorAll(".legend output");
      const x = left + step / chart.x[1] * (right - left);
      cursor.replaceChildren(drawn("path", { d: `M${x} ${top}V${bottom}` }));
      chart.lines.forEach((line, i) => {
        const point = lastUpTo(line.x, step), value = line.y[point] ?? null;
        outputs[i].value = value === null ? "\u2013" : written(value);
        const y = value === null ? -1 : place(value, chart.y);
        if (y >= top - 2 && y <= bottom + 2) {
          const cx = left + line.x[point] / chart.x[1] * (right - left);
          cursor.append(drawn("circle", { cx, cy: y, r: 3.5, class: `hue${chart.hues[i]}` }));
        }
      });
    }
  }

  if (at) {
    at.addEventListener("input", () => readAt(Number(at.value) / 1000 * data.last));
    for (const figure of document.querySelectorAll(".chart")) {
      const picture = figure.querySelector("svg");
      const follow = (event) => {
        const box = picture.getBoundingClientRect();
        const x = (event.clientX - box.left) / box.width * width;
        const share = (x - left) / (right - left);
        readAt(Math.min(Math.max(share, 0), 1) * data.last);
      };
      picture.addEventListener("pointerdown", follow);
      picture.addEventListener("pointermove", follow);
    }
  }

  if (slider) showImages();
  if (at) document.getElementById("at-step").value = count(data.last);
})();
