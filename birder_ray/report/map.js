"use strict";
// Lists the images that are selected on the map of embeddings.
(() => {
  const LISTED = 100;
  const map = document.getElementById("map");
  if (!map) return;
  const picked = document.getElementById("picked");
  const group = document.getElementById("group");
  // The inverse of what was done to the text of a point for Plotly; it goes into the page as text, never as HTML
  const plain = (text) => text.replaceAll("&lt;", "<").replaceAll("&gt;", ">").replaceAll("&amp;", "&");

  const list = (texts) => {
    const count = document.createElement("p");
    const more = texts.length > LISTED ? `, the first ${LISTED} are listed` : "";
    count.textContent = `${texts.length.toLocaleString("en")} images${more}`;
    const lines = document.createElement("ol");
    for (const text of texts.slice(0, LISTED)) {
      const line = document.createElement("li");
      line.textContent = text.split("<br>").filter(Boolean).map(plain).join(", ");
      lines.append(line);
    }
    picked.replaceChildren(count, lines);
  };

  map.on("plotly_selected", (event) => {
    if (!event) return;
    group.value = "";
    list(event.points.map((point) => point.text));
  });
  map.on("plotly_deselect", () => picked.replaceChildren());
  group.addEventListener("change", () => {
    const chosen = group.value === "" ? null : Number(group.value);
    const shown = map.data.map((_, trace) => (chosen === null || chosen === trace ? null : []));
    Plotly.restyle(map, { selectedpoints: shown });
    if (chosen === null) picked.replaceChildren();
    else list(map.data[chosen].text);
  });
})();
