// What layer normalisation of three features does to points, and a classifier made of nothing else, whose weights are
// computed: chapter 6's construction, as in fedlib.book.construct. No picture.
"use strict";

const Folding = (() => {
  const FOLDS = 256;
  const DEEPEST = 40;
  const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;

  /** S_W, S_T as [xx, xy, yy]: scatter within the classes and in total, of points in the plane. */
  function scatter(points, labels) {
    const around = (some) => {
      const [x, y] = [0, 1].map((i) => mean(some.map((p) => p[i])));
      return some.map((p) => [p[0] - x, p[1] - y]);
    };
    const squares = (all) =>
      [[0, 0], [0, 1], [1, 1]].map(([i, j]) => all.reduce((a, p) => a + p[i] * p[j], 0)); // prettier-ignore
    const classes = [...new Set(labels)].map((c) => points.filter((_, i) => labels[i] === c));
    return [squares(classes.flatMap(around)), squares(around(points))];
  }

  /** The least share of the scatter that any linear map leaves inside the classes; NaN where all points are one. */
  function lssr(points, labels) {
    const [[wxx, wxy, wyy], [txx, txy, tyy]] = scatter(points, labels);
    const trace = txx + tyy;
    const det = txx * tyy - txy * txy;
    if (trace < 1e-24) return NaN;
    if (det < 1e-13 * trace * trace) return Math.min(1, (wxx + wyy) / trace); // they lie on a line
    const middle = wxx * tyy + wyy * txx - 2 * wxy * txy;
    const product = Math.max(0, wxx * wyy - wxy * wxy); // of both eigenvalues, times det
    return Math.min(
      1,
      (2 * product) / (middle + Math.sqrt(Math.max(0, middle ** 2 - 4 * det * product))),
    );
  }

  /** Points on a line from -1 to 1. */
  function rescaled(t) {
    const [low, high] = [Math.min(...t), Math.max(...t)];
    return t.map((v) => (high > low ? (2 * v - low - high) / (high - low) : 0));
  }

  /** Stretches of one label along the line, and the least gap between two labels as a share of its length. */
  function separation(t, labels) {
    const order = t.map((_, i) => i).sort((i, j) => t[i] - t[j]);
    let [runs, gap] = [1, Infinity];
    for (let i = 1; i < order.length; i++)
      if (labels[order[i]] !== labels[order[i - 1]]) {
        runs += 1;
        gap = Math.min(gap, t[order[i]] - t[order[i - 1]]);
      }
    return { runs, gap: gap / (t[order.at(-1)] - t[order[0]]) };
  }

  /** The coordinate of points along a direction, in degrees. */
  const along = (points, degrees) => {
    const [c, s] = [Math.cos((degrees * Math.PI) / 180), Math.sin((degrees * Math.PI) / 180)];
    return points.map(([x, y]) => c * x + s * y);
  };

  /** One LN layer: lift t -> (a t + b, 1), LN to the half circle, read out cos(theta - phi). */
  function layer(t, { stretch, shift, phi }) {
    const lifted = t.map((v) => [stretch * v + shift, 1]);
    const circle = lifted.map(([u]) => [u / Math.hypot(u, 1), 1 / Math.hypot(u, 1)]);
    const line = circle.map(([x, y]) => x * Math.cos(phi) + y * Math.sin(phi));
    return { before: t, lifted, circle, line, phi, stretch, shift };
  }

  /** A fold, among random ones, that merges two clusters of a class, leaves wide gaps, and makes small errors. */
  function bestFold(t, labels, cluster, error, random) {
    const heads = [...new Set(cluster)];
    const pairs = heads.flatMap((i) =>
      heads.filter((j) => j > i && labels[i] === labels[j]).map((j) => [i, j]),
    );
    const folds = Array.from({ length: FOLDS }, () => {
      const [i, j] = pairs[Math.floor(random() * pairs.length)];
      const ends = [random(), random()]
        .map((r) => Math.PI * (0.02 + 0.96 * r))
        .sort((a, b) => a - b);
      const [first, second] = ends.map((angle) => 1 / Math.tan(angle));
      const [stretch, shift] = [(first - second) / 2, (first + second) / 2];
      const theta = t.map((v) => Math.atan2(1, stretch * v + shift));
      const phi = (theta[i] + theta[j]) / 2;
      const { line } = layer(t, { stretch, shift, phi });
      const length = Math.max(...line) - Math.min(...line);
      const errors = theta.map((angle, k) => {
        const slope = stretch * Math.sin(angle) ** 2 * Math.abs(Math.sin(angle - phi));
        return (2 * (slope * error[k] + 1)) / length;
      });
      const { runs, gap } = separation(line, labels);
      const score = gap ** 2 / Math.sqrt(mean(errors.map((e) => e * e)));
      return { stretch, shift, phi, merged: [i, j], errors, runs, score };
    });
    const top = Math.max(...folds.map(({ score }) => score));
    const good = folds.filter(({ score }) => score >= top / 2);
    return good.reduce((best, fold) => (fold.runs < best.runs ? fold : best));
  }

  /**
   * LN layers after which each class has an interval of the line to itself; null where two classes share a place.
   * Returns {degrees, layers: [{before, lifted, circle, line, phi, stretch, shift, merged}]}.
   */
  function build(points, labels, random) {
    const apart = (p, q) => Math.hypot(p[0] - q[0], p[1] - q[1]);
    const clash = points.some((p, i) =>
      points.some((q, j) => labels[i] !== labels[j] && apart(p, q) < 1e-3),
    );
    if (clash) return null;
    const classes = new Set(labels).size;
    const directions = Array.from({ length: 180 }, (_, degrees) => ({
      degrees,
      ...separation(along(points, degrees), labels),
    }));
    const { degrees } = directions.reduce((best, one) => (one.gap > best.gap ? one : best));
    const layers = [];
    let t = rescaled(along(points, degrees));
    let error = t.map(() => 1);
    const cluster = points.map((p) => points.findIndex((q) => apart(p, q) === 0));
    while (separation(t, labels).runs > classes) {
      if (layers.length === DEEPEST) return null;
      const { merged, errors, ...fold } = bestFold(t, labels, cluster, error, random);
      layers.push({ ...layer(t, fold), merged });
      cluster.forEach((head, k) => (cluster[k] = head === merged[1] ? merged[0] : head));
      t = rescaled(layers.at(-1).line);
      error = errors;
    }
    return { degrees, layers };
  }

  return { lssr, rescaled, separation, along, layer, build };
})();
