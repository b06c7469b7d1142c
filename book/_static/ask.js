// A guess before the answer. The answer folds away until the reader opens it; the guess then stands beside it.
"use strict";

function asked(root) {
  const { low, high, mean, ends, paper, unit } = JSON.parse(root.dataset.settings);
  const answer = root.querySelector("details");
  const picture = root.querySelector(".ask-picture");
  const slider = document.createElement("input");
  const readout = document.createElement("output");
  const label = document.createElement("label");
  Object.assign(slider, { type: "range", min: low, max: high, step: (high - low) / 100 });
  slider.value = (low + high) / 2;
  const x = (value) => 20 + (260 * (value - low)) / (high - low);
  const shown = (value) => +value.toPrecision(3);
  const mark = (value, y, words, kind) =>
    `<circle class="${kind}" cx="${x(value)}" cy="40" r="6"/><text x="${x(value)}" y="${y}">${words}</text>`;

  function draw() {
    const guess = +slider.value;
    readout.textContent = `${shown(guess)} ${unit}`;
    slider.setAttribute("aria-valuetext", readout.textContent);
    const words = `Your guess ${shown(guess)}, measured ${shown(mean)}${paper === null ? "" : `, the paper ${paper}`}.`;
    const [first, last] = ends.length ? ends : [mean, mean];
    picture.innerHTML = `<svg viewBox="0 0 300 92" role="img" aria-label="${words}">
      <line x1="20" x2="280" y1="40" y2="40"/>
      <line class="ask-interval" x1="${x(Math.max(low, first))}" x2="${x(Math.min(high, last))}" y1="40" y2="40"/>
      ${mark(guess, 84, "your guess", "ask-guess")}${mark(mean, 16, "measured", "ask-ours")}
      ${paper === null ? "" : mark(paper, 64, "the paper", "ask-paper")}
      <text x="20" y="30">${low}</text><text x="280" y="30">${high}</text></svg>`;
  }

  slider.addEventListener("input", draw);
  label.append("Your guess: ", slider, readout);
  root.querySelector(".ask-guess-row").replaceChildren(label);
  answer.open = false;
  draw();
}

for (const root of document.querySelectorAll(".ask:not([data-begun])")) {
  root.dataset.begun = "yes";
  asked(root);
}
