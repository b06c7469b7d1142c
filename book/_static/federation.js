// A federation in the browser: clients, a server, and the network that they train. No dependency; float64, as
// fl.run(precision="float64"), whose weights it reproduces to 1e-10 where it is given the same weights and batches.
//
// A network is a list of layers: dense, ReLU, norm; the last one, the head, is dense alone. All its weights are one
// flat vector w, in the order of fedlib.models.mlp; running statistics of batch norm are a second one, b. Images are
// rows of x (n, d), labels are numbers y (n,).
"use strict";

function makeFederation() {
  const EPS = 1e-5;
  const zeros = (n) => new Float64Array(n);
  const sum = (values) => values.reduce((a, b) => a + b, 0);
  const length = (v) => {
    let squares = 0;
    for (let i = 0; i < v.length; i++) squares += v[i] * v[i];
    return Math.sqrt(squares);
  };

  // Loops: map and its kin take ten times as long on typed arrays.
  function combined(f, a, b = a, c = a, d = a) {
    const out = zeros(a.length);
    for (let i = 0; i < a.length; i++) out[i] = f(a[i], b[i], c[i], d[i]);
    return out;
  }

  /** The sum of some vectors, each with a weight. */
  function weighted(vectors, weights) {
    const out = zeros(vectors[0].length);
    vectors.forEach((vector, k) => {
      for (let i = 0; i < out.length; i++) out[i] += weights[k] * vector[i];
    });
    return out;
  }

  // ---- the network

  /** Where each layer's numbers stand in w and in b: sizes [d, hidden ..., classes]. */
  function network({ sizes, norm = "none", groups = 2 }) {
    let at = 0;
    let home = 0;
    const layers = sizes.slice(1).map((size, i) => {
      const head = i === sizes.length - 2;
      const last = i === sizes.length - 3;
      const kind = head || (norm === "feature" && !last) ? "none" : norm;
      const layer = { inputs: sizes[i], size, head, kind, W: at };
      at += sizes[i] * size;
      if (["layer", "ln-g", "batch"].includes(kind)) {
        layer.gamma = at;
        layer.beta = at + size;
        at += 2 * size;
      }
      if (kind === "batch") {
        layer.mean = home;
        layer.variance = home + size;
        home += 2 * size;
      }
      layer.groups = kind === "ln-g" ? groups : 1;
      return layer;
    });
    return { layers, weights: at, buffers: home, classes: sizes.at(-1) };
  }

  /** x W^T for rows of x. */
  function dense(layer, w, x, rows) {
    const z = zeros(rows * layer.size);
    for (let r = 0; r < rows; r++)
      for (let o = 0; o < layer.size; o++) {
        const a = r * layer.inputs;
        const b = layer.W + o * layer.inputs;
        let even = 0; // two sums, which a processor adds up at the same time
        let odd = layer.inputs % 2 ? x[a + layer.inputs - 1] * w[b + layer.inputs - 1] : 0;
        for (let i = 1; i < layer.inputs; i += 2) {
          even += x[a + i - 1] * w[b + i - 1];
          odd += x[a + i] * w[b + i];
        }
        z[r * layer.size + o] = even + odd;
      }
    return z;
  }

  function relu(z) {
    const out = zeros(z.length);
    for (let i = 0; i < z.length; i++) out[i] = z[i] > 0 ? z[i] : 0;
    return out;
  }

  // Where the numbers stand that are normalised together: in a row or a part of it, or in a column.
  const together = (layer, rows) =>
    layer.kind === "batch"
      ? { sets: layer.size, each: rows, at: (s, i) => i * layer.size + s }
      : {
          sets: rows * layer.groups,
          each: layer.size / layer.groups,
          at: (s, i) => (s * layer.size) / layer.groups + i,
        };

  /** The norm of activations a; fills what the backward pass needs, and moves running statistics in training. */
  function normalise(layer, w, b, a, rows, training) {
    const out = zeros(a.length);
    const { sets, each, at } = together(layer, rows);
    const kept = { out, scale: zeros(sets), hat: out, floored: [] };
    for (let s = 0; s < sets; s++) {
      let mean = 0;
      let squares = 0;
      for (let i = 0; i < each; i++) mean += a[at(s, i)];
      mean = layer.kind === "feature" ? 0 : mean / each;
      for (let i = 0; i < each; i++) squares += (a[at(s, i)] - mean) ** 2;
      let variance = squares / each;
      if (layer.kind === "batch" && training) {
        b[layer.mean + s] += 0.1 * (mean - b[layer.mean + s]);
        b[layer.variance + s] += 0.1 * (squares / (each - 1) - b[layer.variance + s]);
      } else if (layer.kind === "batch") {
        mean = b[layer.mean + s];
        variance = b[layer.variance + s];
      }
      const root = Math.sqrt(layer.kind === "feature" ? squares : variance + EPS);
      kept.scale[s] = layer.kind === "feature" ? Math.sqrt(each) / Math.max(root, EPS) : 1 / root;
      kept.floored[s] = layer.kind === "feature" && root < EPS; // divided by a constant
      for (let i = 0; i < each; i++) out[at(s, i)] = (a[at(s, i)] - mean) * kept.scale[s];
    }
    if (layer.gamma === undefined) return kept;
    kept.out = zeros(a.length);
    for (let i = 0, o = 0; i < a.length; i++, o = (o + 1) % layer.size)
      kept.out[i] = out[i] * w[layer.gamma + o] + w[layer.beta + o];
    return kept;
  }

  /** The gradient before the norm, from the one behind it; adds those of gamma and beta to g. */
  function normaliseBack(layer, w, g, kept, d, rows) {
    const slope = d.slice();
    if (layer.gamma !== undefined)
      for (let i = 0, o = 0; i < d.length; i++, o = (o + 1) % layer.size) {
        g[layer.gamma + o] += d[i] * kept.hat[i];
        g[layer.beta + o] += d[i];
        slope[i] = d[i] * w[layer.gamma + o];
      }
    const back = zeros(d.length);
    const { sets, each, at } = together(layer, rows);
    for (let s = 0; s < sets; s++) {
      let mean = 0;
      let along = 0;
      for (let i = 0; i < each; i++) {
        mean += slope[at(s, i)] / each;
        along += (slope[at(s, i)] * kept.hat[at(s, i)]) / each;
      }
      if (layer.kind === "feature") mean = 0;
      if (kept.floored[s]) along = 0;
      for (let i = 0; i < each; i++) {
        const p = at(s, i);
        back[p] = kept.scale[s] * (slope[p] - mean - kept.hat[p] * along);
      }
    }
    return back;
  }

  /** Logits (rows, classes), and what the backward pass needs of every layer. */
  function forward(net, w, b, x, rows, training = false) {
    let h = x;
    const kept = [];
    for (const layer of net.layers) {
      const one = { layer, input: h, z: dense(layer, w, h, rows) };
      h = layer.head ? one.z : relu(one.z);
      if (layer.kind !== "none") {
        one.norm = normalise(layer, w, b, h, rows, training);
        h = one.norm.out;
      }
      kept.push(one);
    }
    return { logits: h, kept };
  }

  /** Mean cross-entropy of a batch and its gradient; b moves, where the network has batch norm. */
  function gradient(net, w, b, x, y) {
    const rows = y.length;
    const { logits, kept } = forward(net, w, b, x, rows, true);
    const g = zeros(net.weights);
    let d = zeros(logits.length);
    let loss = 0;
    for (let r = 0; r < rows; r++) {
      const row = logits.subarray(r * net.classes, (r + 1) * net.classes);
      const top = Math.max(...row);
      const total = Math.log(sum(row.map((v) => Math.exp(v - top)))) + top;
      loss += (total - row[y[r]]) / rows;
      row.forEach((v, c) => (d[r * net.classes + c] = (Math.exp(v - total) - (c === y[r])) / rows));
    }
    for (const { layer, input, z, norm } of kept.reverse()) {
      if (norm) d = normaliseBack(layer, w, g, norm, d, rows);
      if (!layer.head) d = combined((v, u) => (u > 0 ? v : 0), d, z);
      const below = zeros(rows * layer.inputs);
      for (let r = 0; r < rows; r++)
        for (let o = 0; o < layer.size; o++) {
          const v = d[r * layer.size + o];
          if (v === 0) continue;
          const p = r * layer.inputs;
          const q = layer.W + o * layer.inputs;
          for (let i = 0; i < layer.inputs; i++) g[q + i] += v * input[p + i];
          if (layer.W === 0) continue; // nobody asks for the gradient of an image
          for (let i = 0; i < layer.inputs; i++) below[p + i] += v * w[q + i];
        }
      d = below;
    }
    return { g, loss };
  }

  // ---- how a gradient becomes a step: G, W -> G

  const clip = (g, w, { radius = Infinity }) => {
    const factor = Math.min(1, radius / (length(g) + 1e-6));
    return factor < 1 ? combined((v) => v * factor, g) : g;
  };
  const decay = (g, w, { lambda = 0 }) => (lambda ? combined((a, b) => a + lambda * b, g, w) : g);
  const pull = (g, w, { mu }, local) => combined((a, b, c) => a + mu * (b - c), g, w, local.start);
  const control = (g, w, settings, local) =>
    combined((a, b, c) => a - b + c, g, local.c, local.server.c);

  // ---- methods: what is added to a gradient, in which order it is clipped and decayed, how the server moves

  const average = (w, delta) => combined((a, b) => a + b, w, delta);
  const METHODS = {
    FedAvg: {},
    FedProx: { correct: pull },
    SCAFFOLD: {
      correct: control,
      /** Option II, line 12: c_k <- c_k - c + (w - w_k) / (T lr). */
      remember: (local, lr) =>
        combined(
          (c, s, a, b) => c - s + (a - b) / (local.steps * lr),
          local.c,
          local.server.c,
          local.start,
          local.w,
        ),
      move(w, delta, server, { clients }, changes) {
        const each = changes.map(() => 1 / clients);
        server.c = average(server.c, weighted(changes, each));
        return average(w, delta);
      },
    },
    FedAvgM: {
      move(w, delta, server, { momentum = 0.9 }) {
        server.m = combined((m, d) => momentum * m + d, server.m, delta);
        return average(w, server.m);
      },
    },
    FedNAR: { step: [decay, clip] },
  };

  // ---- the federation

  /**
   * N clients and a server.
   *
   * @param options net: {sizes, norm, groups}; x, y: all images (n, d) and labels; parts: each client's positions;
   *   w, b: initial weights and running statistics; method: a name in METHODS; settings: mu, momentum, lambda, radius;
   *   lr: the rate of the local steps.
   */
  function federation({
    net: shape,
    x,
    y,
    parts,
    w,
    b = [],
    method = "FedAvg",
    settings = {},
    lr,
  }) {
    const net = network(shape);
    const { correct, step = [clip, decay], remember, move = average } = METHODS[method];
    const d = shape.sizes[0];
    const server = {
      w: zeros(net.weights),
      b: zeros(net.buffers),
      m: zeros(net.weights),
      c: zeros(net.weights),
    };
    server.w.set(w);
    server.b.set(b);
    const memory = parts.map(() => zeros(net.weights));
    let locals = [];

    const images = (positions) => {
      const rows = zeros(positions.length * d);
      positions.forEach((p, r) => rows.set(x.subarray(p * d, (p + 1) * d), r * d));
      return rows;
    };

    /** The server sends its weights to these clients. */
    function begin(cohort) {
      locals = cohort.map((k) => ({
        k, steps: 0, loss: 0, server, start: server.w, c: memory[k], w: server.w.slice(), b: server.b.slice(),
      })); // prettier-ignore
      return locals;
    }

    /** One local step of a client, on a batch of positions. */
    function stepOf(local, positions) {
      const labels = positions.map((p) => y[p]);
      const { g, loss } = gradient(net, local.w, local.b, images(positions), labels);
      let G = correct ? correct(g, local.w, settings, local) : g;
      for (const transform of step) G = transform(G, local.w, settings, local);
      for (let i = 0; i < G.length; i++) local.w[i] -= lr * G[i];
      local.steps += 1;
      local.loss = loss;
    }

    /** The clients send their weights back, and the server moves. False: something is not finite, and it stays. */
    function merge() {
      const there = locals.filter((local) => local.steps);
      if (!there.length) return true;
      const total = sum(there.map(({ k }) => parts[k].length));
      const share = there.map(({ k }) => parts[k].length / total);
      const meanOf = (rows) => weighted(rows, share);
      const delta = meanOf(there.map((local) => combined((a, s) => a - s, local.w, local.start)));
      const kept = remember ? there.map((local) => remember(local, lr)) : [];
      const changes = kept.map((c, i) => combined((a, s) => a - s, c, there[i].c));
      const next = { ...server };
      next.w = move(server.w, delta, next, { ...settings, clients: parts.length }, changes);
      if (net.buffers) next.b = meanOf(there.map((local) => local.b));
      locals = [];
      if (![next.w, next.b, next.m, next.c].every((v) => v.every(Number.isFinite))) return false;
      Object.assign(server, next);
      kept.forEach((c, i) => (memory[there[i].k] = c));
      return true;
    }

    /** A whole round: batches[i] are those of the i-th client of the cohort. */
    function round(cohort, batches) {
      begin(cohort).forEach((local, i) =>
        batches[i].forEach((positions) => stepOf(local, positions)),
      );
      return merge();
    }

    /** Predicted classes of rows of x, by the server's weights or a client's. */
    function predict(rows, from = server) {
      const n = rows.length / d;
      const { logits } = forward(net, from.w, from.b, rows, n);
      return Array.from({ length: n }, (_, r) => {
        const row = logits.subarray(r * net.classes, (r + 1) * net.classes);
        return row.indexOf(Math.max(...row));
      });
    }

    return { net, server, begin, stepOf, merge, round, predict, locals: () => locals };
  }

  // ---- draws of the page's own, where a reader deals the images: the library's need its schedule

  /** Numbers in [0, 1) that follow from a seed (mulberry32). */
  function generator(seed) {
    let state = seed >>> 0;
    return () => {
      state = (state + 0x6d2b79f5) >>> 0;
      let t = Math.imul(state ^ (state >>> 15), 1 | state);
      t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
      return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
    };
  }

  function shuffled(items, random) {
    const order = [...items];
    for (let i = order.length - 1; i > 0; i--) {
      const j = Math.floor(random() * (i + 1));
      [order[i], order[j]] = [order[j], order[i]];
    }
    return order;
  }

  /** As many batches as there are steps, drawn without replacement until a pass is over, as in fedlib.schedule. */
  function batches(part, size, steps, random) {
    const B = Math.min(size, part.length);
    const found = [];
    while (part.length && found.length < steps) {
      const order = shuffled(part, random);
      for (let i = 0; i + B <= order.length && found.length < steps; i += B)
        found.push(order.slice(i, i + B));
    }
    return found;
  }

  /** Initial weights as torch draws them for a dense layer, uniform in +-1 / sqrt(inputs), by the page's generator. */
  function initial(shape, random) {
    const net = network(shape);
    const w = zeros(net.weights);
    const b = zeros(net.buffers);
    for (const layer of net.layers) {
      const bound = 1 / Math.sqrt(layer.inputs);
      for (let i = 0; i < layer.inputs * layer.size; i++)
        w[layer.W + i] = bound * (2 * random() - 1);
      if (layer.gamma !== undefined) w.fill(1, layer.gamma, layer.gamma + layer.size);
      if (layer.kind === "batch") b.fill(1, layer.variance, layer.variance + layer.size);
    }
    return { w, b };
  }

  return { METHODS, federation, generator, shuffled, batches, initial };
}

var Federation = makeFederation();
