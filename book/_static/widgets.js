// What ipywidgets lack on a static page.
(function () {
  "use strict";

  // They ask MathJax 2 to typeset labels; the page has MathJax 3, which has no Hub.
  const hub = {
    Queue: function (call) {
      if (window.MathJax.typesetPromise) window.MathJax.typesetPromise([call[2]]);
    },
  };
  let mathjax = window.MathJax;
  if (mathjax) mathjax.Hub = hub;
  Object.defineProperty(window, "MathJax", {
    configurable: true,
    get: function () { return mathjax; },
    set: function (value) {
      mathjax = value;
      if (mathjax && !mathjax.Hub) mathjax.Hub = hub;
    },
  });

  // html-manager looks for its fonts beside RequireJS's base, which would be the page's own folder.
  const loader = document.querySelector("script[src*='vendor/require.js']");
  if (loader && window.requirejs) window.requirejs.config({ baseUrl: new URL("./", loader.src).href });

  // Their sliders have no accessible name, and announce an index instead of the value shown beside them.

  function text(node) {
    return node ? node.textContent.trim() : "";
  }

  function set(node, name, value) {
    if (value && node.getAttribute(name) !== value) node.setAttribute(name, value);
  }

  function nameHandles() {
    document.querySelectorAll(".jupyter-widgets .noUi-handle").forEach(function (handle) {
      const box = handle.closest(".widget-inline-hbox, .widget-slider");
      if (!box) return;
      set(handle, "aria-label", text(box.querySelector(".widget-label")));
      set(handle, "aria-valuetext", text(box.querySelector(".widget-readout")));
    });
  }

  document.addEventListener("DOMContentLoaded", function () {
    nameHandles();
    new MutationObserver(nameHandles).observe(document.body, {
      childList: true, subtree: true, characterData: true, attributes: true, attributeFilter: ["aria-valuenow"],
    });
  });
})();
