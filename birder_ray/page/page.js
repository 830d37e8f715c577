"use strict";
// Draws the charts in the colours of the page.
(() => {
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
})();
