// A digit of the reader's own, drawn on eight by eight pixels, and what each client and the merged network take it for.
"use strict";

/** A box with the pixels; read(image) asks the networks. */
function sketchpad(read) {
  const SIDE = 8;
  const image = new Float64Array(SIDE * SIDE);
  const { make, button, group } = Drawing;
  const said = make("p", { role: "status", "aria-live": "polite" }, "Nothing is drawn yet.");
  const pixels = Array.from(image, (_, i) =>
    make("button", {
      type: "button",
      "data-pixel": i,
      "aria-pressed": "false",
      "aria-label": `row ${Math.floor(i / SIDE) + 1}, column ${(i % SIDE) + 1}`,
      tabindex: i ? -1 : 0,
    }),
  );
  const pad = make(
    "div",
    { class: "live-pad", role: "group", "aria-label": "eight by eight pixels" },
    ...pixels,
  );

  function paint(i, on) {
    image[i] = on ? 1 : 0;
    pixels[i].setAttribute("aria-pressed", on);
  }

  async function answer() {
    if (!image.some(Boolean)) return (said.textContent = "Nothing is drawn yet.");
    const { server, clients } = await read(image);
    const each = clients.map(([k, c]) => `client ${k + 1}: ${c}`).join(", ");
    said.textContent = `The merged network says ${server}. ${
      each
        ? `Before the last merge, ${each}.`
        : "Let the clients train a round, and they have an answer, too."
    }`;
  }

  // A pointer paints what it passes, white or black as the first pixel becomes; a key turns one over.
  pad.addEventListener("pointerdown", (event) => {
    const first = event.target.dataset.pixel;
    if (first === undefined) return;
    event.preventDefault();
    const on = !image[first];
    const over = ({ clientX, clientY }) => {
      const i = document.elementFromPoint(clientX, clientY)?.dataset.pixel;
      if (i !== undefined) paint(i, on);
    };
    over(event);
    const end = () => {
      document.removeEventListener("pointermove", over);
      answer();
    };
    document.addEventListener("pointermove", over);
    document.addEventListener("pointerup", end, { once: true });
    document.addEventListener("pointercancel", end, { once: true });
  });
  pad.addEventListener("keydown", (event) => {
    const at = +event.target.dataset.pixel;
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -SIDE, ArrowDown: SIDE }[event.key];
    if (step && pixels[at + step]) {
      event.preventDefault();
      pixels[at].tabIndex = -1;
      pixels[at + step].tabIndex = 0;
      pixels[at + step].focus();
    } else if (event.key === " " || event.key === "Enter") {
      event.preventDefault();
      paint(at, !image[at]);
      answer();
    }
  });
  const clear = () => {
    pixels.forEach((_, i) => paint(i, false));
    answer();
  };
  const box = make(
    "div",
    {},
    pad,
    group("the drawing", button("Ask again", answer), button("Clear", clear)),
    said,
  );
  return { box, answer };
}
