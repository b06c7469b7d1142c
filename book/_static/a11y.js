// Widget sliders come without an accessible name, and announce an index instead of the value shown beside them.
(function () {
  "use strict";

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
