// What LTXKit's nodes say stays on them, and the clip moves while it is sampled.
//
// Only the front end's public extension API is used. Without this file the nodes work as well: ComfyUI's log has the
// sentences, and its own still preview appears. Text is kept in the node's properties, so that it survives a reload;
// both widgets are left out of `widgets_values` and of prompts.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const SAID = "ltxkit_said";
const PREVIEW = "ltxkit_preview";
const MARGIN = 6; // pixels around a widget

function ours(node) {
  return node?.comfyClass?.startsWith("LTXKit") ?? false;
}

/** The widget of that name, with `element` in it. It grows the node by its height, and is never saved. */
function domWidget(node, name, element, height) {
  const existing = node.widgets?.find((widget) => widget.name === name);
  if (existing) return existing;
  const total = () => height() + 2 * MARGIN;
  const options = { serialize: false, hideOnZoom: false, margin: MARGIN, getMinHeight: total, getMaxHeight: total };
  const widget = node.addDOMWidget(name, name, element, options);
  widget.serialize = false;
  return widget;
}

/** Give the node the height that its widgets need; it never shrinks. */
function fit(node) {
  const [width, height] = node.computeSize();
  node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)]);
  node.graph?.setDirtyCanvas(true, true);
}

function showText(node, text) {
  let widget = node.widgets?.find((existing) => existing.name === SAID);
  if (!text && !widget) return;
  if (!widget) {
    const element = document.createElement("div");
    element.className = "ltxkit-said";
    widget = domWidget(node, SAID, element, () => textHeight(widget?.element?.textContent ?? "", node.size[0]));
  }
  widget.element.replaceChildren(...text.split("\n").map(lineOf));
  fit(node);
}

const isRow = (line) => / {3}/.test(line); // of a table; other lines are sentences, which wrap

function lineOf(line, number) {
  const element = document.createElement("span");
  element.textContent = number ? `\n${line}` : line;
  element.classList.toggle("ltxkit-row", isRow(line));
  return element;
}

const LINE = 15; // pixels
const CHARACTER = 6.2;
const MOST_LINES = 14; // longer texts scroll

function textHeight(text, width) {
  const columns = Math.max(Math.floor((width - 40) / CHARACTER), 10);
  const height = (line) => (isRow(line) ? 1 : Math.max(Math.ceil(line.length / columns), 1));
  const lines = text.split("\n").reduce((sum, line) => sum + height(line), 0);
  return Math.min(lines, MOST_LINES) * LINE + 12;
}

function showPreview(node, image) {
  let widget = node.widgets?.find((existing) => existing.name === PREVIEW);
  if (!widget) {
    const element = document.createElement("img");
    element.className = "ltxkit-preview";
    element.alt = "Preview of the clip";
    widget = domWidget(node, PREVIEW, element, () => 180);
    fit(node);
  }
  widget.element.src = image;
}

// Links and slots of our types; those that have a counterpart in ComfyUI have its colour.
const COLOURS = {
  LTXKIT_MODEL: "#b39ddb",
  LTXKIT_VAE: "#ff6e6e",
  LTXKIT_TEXT_ENCODER: "#ffd500",
  LTXKIT_UPSCALER: "#64b5f6",
  LTXKIT_CONDITION: "#ffa931",
  LTXKIT_GUIDANCE: "#6ee7b7",
  LTXKIT_LORA: "#f48fb1",
};

/** In the classic renderer by the canvas's tables; a palette that names no colour for a type of ours leaves it as it is. */
function colourLinks() {
  const tables = [globalThis.LGraphCanvas?.link_type_colors, app.canvas?.default_connection_color_byType];
  for (const table of tables.filter(Boolean)) {
    for (const [type, own] of Object.entries(COLOURS)) {
      let colour = own;
      const set = (chosen) => (colour = chosen || own);
      Object.defineProperty(table, type, { get: () => colour, set, enumerable: true, configurable: true });
    }
  }
}

// For Nodes 2.0.
const VARIABLES = Object.entries(COLOURS).map(([type, colour]) => `--color-datatype-${type}: ${colour};`).join(" ");

const STYLE = `
:root { ${VARIABLES} }
.ltxkit-said { white-space: pre-wrap; overflow: auto; box-sizing: border-box; padding: 4px 8px; border-radius: 4px;
  max-height: ${MOST_LINES * LINE + 12}px;
  font: 11px/15px system-ui, sans-serif; color: var(--input-text, #ddd); background: var(--comfy-input-bg, #222); }
.ltxkit-row { white-space: pre; font-family: ui-monospace, monospace; }
.ltxkit-preview { object-fit: contain; max-height: 260px; background: #000; border-radius: 4px; }
`;

app.registerExtension({
  name: "ltxkit",

  setup() {
    const style = document.createElement("style");
    style.textContent = STYLE;
    document.head.append(style);
    colourLinks();
    // Tells the server to send animations and sentences to this file, not to ComfyUI's still preview and progress text.
    const announce = () =>
      api.fetchApi("/ltxkit/browsers", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ client_id: api.clientId }),
      });
    announce();
    api.addEventListener("execution_start", announce);
    api.addEventListener("ltxkit.preview", ({ detail }) => {
      const node = nodeOf(detail.node);
      if (ours(node)) showPreview(node, detail.image);
    });
    api.addEventListener("ltxkit.said", ({ detail }) => {
      const node = nodeOf(detail.node);
      if (ours(node)) showText(node, detail.text);
    });
  },

  nodeCreated(node) {
    if (node.comfyClass === "SaveVideo") fillInPrefix(node);
    if (!ours(node)) return;
    const { onExecuted } = node;
    node.onExecuted = function (output) {
      onExecuted?.apply(this, arguments);
      const text = (output?.text ?? []).join("\n");
      this.properties[SAID] = text;
      showText(this, text);
    };
  },

  loadedGraphNode(node) {
    if (ours(node)) showText(node, node.properties?.[SAID] ?? "");
  },
});

/** Dates and values of nodes in a prefix, which front ends before 1.36 fill in for Save Image, and not for Save Video. */
function fillInPrefix(node) {
  const fill = window.comfyAPI?.utils?.applyTextReplacements;
  const widget = node.widgets?.find((existing) => existing.name === "filename_prefix");
  if (!fill || !widget || widget.serializeValue) return;
  widget.serializeValue = () => fill(app.graph, widget.value);
}

/** The node of an execution id; of a node in a subgraph ("12:3") the inner one. */
function nodeOf(executionId) {
  let graph = app.rootGraph ?? app.graph;
  let node = null;
  for (const id of String(executionId).split(":")) {
    node = graph?.getNodeById(Number(id)) ?? graph?.getNodeById(id) ?? null;
    graph = node?.subgraph;
  }
  return node;
}
