"use strict";
// Draws every chart when it can be seen, in the colours of the page, and draws it anew when these change.
(() => {
  const ink = () => getComputedStyle(document.body).color;
  const narrow = () => window.innerWidth < 600;

  function themed(layout) {
    const found = structuredClone(layout);
    found.font = { ...found.font, color: ink(), size: narrow() ? 11 : 13 };
    if (narrow()) found.margin = { ...found.margin, l: Math.min(found.margin.l, 44), r: 8 };
    return found;
  }

  function draw(figure) {
    const plot = figure.querySelector(".plot");
    if (!plot.clientWidth) return;
    const chart = JSON.parse(figure.querySelector("script").textContent);
    Plotly.react(plot, chart.data, themed(chart.layout), { displayModeBar: false, responsive: true });
    plot.dataset.drawn = "yes";
  }

  const figures = [...document.querySelectorAll("figure")].filter((figure) => figure.querySelector(":scope > .plot"));
  const drawAll = (again) => figures.forEach((figure) => {
    if (again || !figure.querySelector(".plot").dataset.drawn) draw(figure);
  });

  document.querySelectorAll("details").forEach((part) => part.addEventListener("toggle", () => part.open && drawAll(false)));
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawAll(true));
  let wide = narrow();
  window.addEventListener("resize", () => { if (wide !== narrow()) { wide = narrow(); drawAll(true); } });
  window.addEventListener("beforeprint", () => { document.querySelectorAll("details.trial").forEach((part) => { part.open = true; }); drawAll(false); });
  drawAll(false);
  document.body.dataset.ready = "yes";
})();
