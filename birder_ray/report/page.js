"use strict";
// Draws the charts in the colours of the page, and lists the images that are selected on the map of embeddings.
(() => {
  const LISTED = 100;
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  const dressed = (layout) => {
    const [text, soft, line, panel] = ["--text", "--soft", "--line", "--panel"].map(colour);
    const axis = { color: text, gridcolor: line, linecolor: line };
    return {
      ...layout,
      font: { color: text, family: getComputedStyle(document.body).fontFamily, size: 12 },
      xaxis: { ...layout.xaxis, ...axis },
      yaxis: { ...layout.yaxis, ...axis },
      hoverlabel: { ...layout.hoverlabel, bgcolor: panel, bordercolor: line, font: { color: text } },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: soft, activecolor: text, orientation: "v" },
      // On a touch screen a finger scrolls the page; the chart's own buttons switch to selecting
      dragmode: layout.dragmode && !matchMedia("(pointer: coarse)").matches ? layout.dragmode : false,
    };
  };

  const charts = [...document.querySelectorAll("[data-figure]")];
  for (const chart of charts) {
    const figure = JSON.parse(document.getElementById(chart.dataset.figure).textContent);
    const selectable = Boolean(figure.layout.dragmode);
    if (!selectable) {
      for (const axis of [figure.layout.xaxis, figure.layout.yaxis]) axis.fixedrange = true;
    }
    Plotly.newPlot(chart, figure.data, dressed(figure.layout), {
      responsive: true,
      displaylogo: false,
      displayModeBar: selectable,
      modeBarButtons: [["select2d", "lasso2d", "zoom2d", "pan2d", "resetScale2d"]],
    });
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    for (const chart of charts) Plotly.react(chart, chart.data, dressed(chart.layout));
  });

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
