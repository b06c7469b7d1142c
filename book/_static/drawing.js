// What the live pieces draw with: elements, and three kinds of small pictures as SVG, in the colours of the page.
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

  const picture = (height, words, parts) =>
    `<svg viewBox="0 0 290 ${height}" role="img" aria-label="${words}">${parts.flat().join("")}</svg>`;
  const text = (x, y, words, kind = "") =>
    `<text x="${x}" y="${y}" class="${kind}">${words}</text>`;

  // Per cent from 0 at y = 128 to 100 at y = 28, under a title.
  const height = (share) => 128 - 100 * share;
  const frame = (title) => [
    text(0, 12, title, "live-title"),
    ...[0, 50, 100].map(
      (p) => `<line x1="30" x2="280" y1="${height(p / 100)}" y2="${height(p / 100)}"/>`,
    ),
    ...[0, 50, 100].map((p) => text(26, height(p / 100) + 4, p, "live-end")),
  ];

  /** Lines of [round, share], each with a class; words are for those who do not see them. */
  function curves(title, words, lines) {
    const longest = Math.max(20, ...lines.flatMap(({ points }) => points.map(([t]) => t)));
    const drawn = lines.map(({ points, kind }) => {
      const at = points.map(([t, share]) => `${30 + (250 * t) / longest},${height(share)}`);
      return `<polyline class="${kind}" points="${at.join(" ")}"/>`;
    });
    const axis = [text(30, 142, 0), text(280, 142, longest), text(155, 142, "round")];
    return picture(146, words, [frame(title), drawn, axis]);
  }

  /** A bar for each [name, share] of so many names, and a level across. */
  function bars(title, words, names, shares, level) {
    const drawn = shares.map(
      ([k, share]) =>
        `<rect x="${32 + 25 * k}" width="18" y="${height(share)}" height="${100 * share}"/>`,
    );
    const across = `<line class="live-level" x1="30" x2="280" y1="${height(level)}" y2="${height(level)}"/>`;
    const under = names.map((name, k) => text(41 + 25 * k, 142, name));
    return picture(146, words, [frame(title), drawn, across, under]);
  }

  /** A dot in row k and column c whose area is held[k][c]. */
  function dots(title, words, held, tell) {
    const most = Math.max(...held.flat(), 1);
    const drawn = held.map((row, k) =>
      row.map((n, c) =>
        n
          ? `<circle data-k="${k}" data-c="${c}" cx="${34 + 26 * c}" cy="${36 + 26 * k}" r="${2 + 10 * Math.sqrt(n / most)}"><title>${tell(k, c)}</title></circle>`
          : "",
      ),
    );
    const names = held.map((_, i) => [text(34 + 26 * i, 300, i), text(8, 40 + 26 * i, i + 1)]);
    return picture(304, words, [text(0, 12, title, "live-title"), drawn.flat(), names.flat()]);
  }

  return { make, curves, bars, dots };
})();
