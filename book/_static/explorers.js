// Explorers on a page that has no kernel behind it. The build saves the state of their widgets in the page; this shows it
// with the browser's own controls. (Jupyter's html-manager does, too, with a megabyte of scripts that keep a slow phone
// busy for three seconds.)
document.addEventListener("DOMContentLoaded", () => {
  "use strict";
  const saved = document.querySelector("script[type='application/vnd.jupyter.widget-state+json']");
  if (!saved) return;
  const models = JSON.parse(saved.textContent).state;
  const target = reference => reference.replace("IPY_MODEL_", "");
  const links = Object.values(models).filter(model => model.model_name === "LinkModel").map(model => ({
    control: target(model.state.source[0]), stack: target(model.state.target[0]),
  }));
  let still; // the frame that an explorer starts with: it stands on the page, for browsers that run no scripts
  const stacks = {}; // those on the page: id -> function that shows one of its children

  function choose(control, index) {
    for (const link of links.filter(link => link.control === control)) {
      models[link.stack].state.selected_index = index; // for one that is not on the page yet
      if (stacks[link.stack]) stacks[link.stack](index);
    }
  }

  function make(tag, properties, children = []) {
    const node = Object.assign(document.createElement(tag), properties);
    node.append(...children);
    return node;
  }

  function labelled(id, control, rest = []) {
    control.id = `explore-${id}`;
    const label = make("label", { htmlFor: control.id, textContent: models[id].state.description });
    return make("div", { className: "explore-control" }, [label, control, ...rest]);
  }

  const show = {
    VBoxModel: state => make("div", { className: (state._dom_classes || []).join(" ") },
      state.children.map(child => render(target(child)))),

    HTMLModel: state => make("div", { innerHTML: state.value ??= still }),

    StackModel(state, id) {
      const node = make("div"), made = [];
      stacks[id] = index => {
        made[index] = made[index] || render(target(state.children[index]));
        node.replaceChildren(made[index]);
      };
      stacks[id](state.selected_index);
      return node;
    },

    DropdownModel(state, id) {
      const menu = make("select", {}, state._options_labels.map(text => make("option", { textContent: text })));
      menu.selectedIndex = state.index;
      menu.addEventListener("input", () => choose(id, menu.selectedIndex));
      return labelled(id, menu);
    },

    SelectionSliderModel(state, id) {
      const slider = make("input", { type: "range", min: 0, max: state._options_labels.length - 1, value: state.index });
      const readout = make("output");
      const say = () => {
        readout.textContent = state._options_labels[slider.value];
        slider.setAttribute("aria-valuetext", readout.textContent);
      };
      slider.addEventListener("input", () => { say(); choose(id, +slider.value); });
      say();
      return labelled(id, slider, [readout]);
    },
  };

  function render(id) {
    const { model_name: name, state } = models[id];
    return show[name](state, id);
  }

  for (const view of document.querySelectorAll("script[type='application/vnd.jupyter.widget-view+json']")) {
    const next = view.nextElementSibling;
    if (next?.className === "explore-still") {
      still = next.innerHTML;
      next.remove();
    }
    view.after(render(JSON.parse(view.textContent).model_id));
  }
});
