// Shows openapi.json as a list.
"use strict";

function entry(list, name, text) {
  const [term, meaning] = ["dt", "dd"].map((tag) => list.appendChild(document.createElement(tag)));
  term.appendChild(document.createElement("code")).textContent = name;
  meaning.textContent = text;
}

fetch("openapi.json").then((response) => response.json()).then((said) => {
  for (const [path, methods] of Object.entries(said.paths))
    for (const [method, { summary }] of Object.entries(methods))
      entry(document.getElementById("paths"), `${method.toUpperCase()} ${path}`, summary);
  const schema = said.paths["/v1/videos"].post.requestBody.content["application/json"].schema;
  for (const [name, { description }] of Object.entries(schema.properties)) entry(document.getElementById("fields"), name, description);
});
