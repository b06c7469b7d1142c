// What the live pieces draw with: elements, small pictures as SVG in the colours of the page, and a plane whose points
// can be dragged.
"use strict";

const Drawing = (() => {
  /** An element; attributes whose names begin with "on" are listeners. */
  function make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes))
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else element.setAttribute(name, value);
    element.append(...children);
    return element;
  }

  const button = (words, action, more = {}) =>
    make("button", { type: "button", onclick: action, ...more }, words);
  const group = (words, ...children) =>
    make("div", { class: "live-row", role: "group", "aria-label": words }, ...children);
  const folded = (words, ...children) =>
    make("details", {}, make("summary", {}, words), ...children);

  /** A line that says what is; aloud, for those who listen, only when nothing has changed for a moment. */
  function status() {
    const seen = make("p", { class: "live-said" });
    const heard = make("p", { role: "status", "aria-live": "polite", class: "live-aloud" });
    let later;
    const say = (words) => {
      seen.textContent = words;
      clearTimeout(later);
      later = setTimeout(() => (heard.textContent = words), 500);
    };
    return { line: make("div", {}, seen, heard), say };
  }

  const picture = (width, height, words, parts) =>
    `<svg viewBox="0 0 ${width} ${height}" role="img" aria-label="${words}">${parts.flat(3).join("")}</svg>`;
  const text = (x, y, words, kind = "") =>
    `<text x="${x}" y="${y}" class="${kind}">${words}</text>`;
  const title = (words) => text(0, 12, words, "live-title");

  // ---- shares: per cent from 0 at y = 128 to 100 at y = 28, under a title

  const height = (share) => 128 - 100 * share;
  const frame = (words, right = 280) => [
    title(words),
    [0, 50, 100].map((p) => {
      const y = height(p / 100);
      return `<line x1="30" x2="${right}" y1="${y}" y2="${y}"/>${text(26, y + 4, p, "live-end")}`;
    }),
  ];

  /** Lines of [round, share], each with a class; words are for those who do not see them. */
  function curves(heading, words, lines, width = 290) {
    const right = width - 10;
    const longest = Math.max(20, ...lines.flatMap(({ points }) => points.map(([t]) => t)));
    const drawn = lines.map(({ points, kind }) => {
      const at = points.map(
        ([t, share]) => `${30 + ((right - 30) * t) / longest},${height(share)}`,
      );
      return `<polyline class="${kind}" points="${at.join(" ")}"/>`;
    });
    const axis = [
      text(30, 142, 0),
      text(right, 142, longest),
      text((30 + right) / 2, 142, "round"),
    ];
    return picture(width, 146, words, [frame(heading, right), drawn, axis]);
  }

  /** A bar for each [name, share] of so many names, and a level across. */
  function bars(heading, words, names, shares, level) {
    const drawn = shares.map(
      ([k, share]) =>
        `<rect x="${32 + 25 * k}" width="18" y="${height(share)}" height="${100 * share}"/>`,
    );
    const across = `<line class="live-level" x1="30" x2="280" y1="${height(level)}" y2="${height(level)}"/>`;
    const under = names.map((name, k) => text(41 + 25 * k, 142, name));
    return picture(290, 146, words, [frame(heading), drawn, across, under]);
  }

  /** A dot in row k and column c whose area is held[k][c]; tell(k, c) says what it is, move whether it can be dragged. */
  function dots(heading, words, held, tell, move = true) {
    const most = Math.max(...held.flat(), 1e-9);
    const dot = (n, k, c) =>
      `<circle class="${move ? "live-moved" : "live-fixed"}" ${move ? `data-drag="${k},${c}"` : ""} cx="${34 + 26 * c}"
        cy="${36 + 26 * k}" r="${1 + 11 * Math.sqrt(n / most)}"><title>${tell(k, c)}</title></circle>`;
    const drawn = held.map((row, k) => row.map((n, c) => (n ? dot(n, k, c) : "")));
    const names = held.map((_, i) => [text(34 + 26 * i, 300, i), text(8, 40 + 26 * i, i + 1)]);
    return picture(290, 304, words, [title(heading), drawn, names]);
  }

  // ---- a plane

  /** A picture of [left, right] x [low, high]: at(x, y) is where a point stands, back(event, svg) which point is there. */
  function plane([left, right], [low, high], width = 290) {
    const scale = width / (right - left);
    const tall = scale * (high - low);
    const at = (x, y) => [scale * (x - left), scale * (high - y)];
    const back = (event, svg) => {
      const box = svg.getBoundingClientRect();
      const x = left + ((event.clientX - box.left) / box.width) * (right - left);
      const y = high - ((event.clientY - box.top) / box.height) * (high - low);
      return [Math.max(left, Math.min(right, x)), Math.max(low, Math.min(high, y))];
    };
    const line = (points, kind) =>
      `<polyline class="${kind}" points="${points.map((p) => at(...p).join(",")).join(" ")}"/>`;
    const circle = ([x, y], r, kind) => {
      const [cx, cy] = at(x, y);
      return `<circle class="${kind}" cx="${cx}" cy="${cy}" r="${scale * r}"/>`;
    };
    const MARKS = {
      dot: "M-5,0a5,5 0 1,0 10,0a5,5 0 1,0 -10,0",
      square: "M-5,-5h10v10h-10z",
      triangle: "M0,-6l6,10h-12z",
      cross: "M-5,0h10M0,-5v10",
      star: "M0,-8l2,5h6l-5,4l2,6l-5,-4l-5,4l2,-6l-5,-4h6z",
    };
    const mark = (p, shape, kind) =>
      `<path class="${kind}" d="${MARKS[shape]}" transform="translate(${at(...p)})"/>`;
    // a mark that can be dragged, with room for a finger around it
    const handle = (p, shape, kind, name) =>
      `${mark(p, shape, kind)}<circle class="live-handle" data-drag="${name}" r="14" transform="translate(${at(...p)})"/>`;
    const label = ([x, y], words) => text(at(x, y)[0] + 10, at(x, y)[1] - 8, words, "live-start");
    const draw = (words, ...parts) => picture(width, tall, words, parts);
    return { at, back, line, circle, mark, handle, label, draw, scale };
  }

  /**
   * Whatever in a box says data-drag="name" follows the pointer: moved(name, event, svg) on the way, dropped at the end.
   * The box, which stays while its picture is drawn anew, holds the pointer.
   */
  function draggable(box, moved, dropped) {
    let name;
    box.addEventListener("pointerdown", (event) => {
      name = event.target.dataset.drag;
      if (name === undefined) return;
      event.preventDefault();
      box.setPointerCapture(event.pointerId);
    });
    // A finger that drags does not scroll, even after its mark, whose touch-action says so, has been drawn anew.
    const stay = (event) => event.target.dataset.drag !== undefined && event.preventDefault();
    box.addEventListener("touchstart", stay, { passive: false });
    box.addEventListener("pointermove", (event) => {
      if (name !== undefined) moved(name, event, box.querySelector("svg"));
    });
    const end = (event) => {
      if (name === undefined) return;
      const last = name;
      name = undefined;
      dropped(last, event, box.querySelector("svg"));
    };
    box.addEventListener("pointerup", end);
    box.addEventListener("pointercancel", end);
  }

  return {
    make,
    button,
    group,
    folded,
    status,
    picture,
    text,
    title,
    curves,
    bars,
    dots,
    plane,
    draggable,
  };
})();
