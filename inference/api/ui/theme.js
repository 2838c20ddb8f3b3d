// The theme: light, dark, or as the system has it. Runs before the page is painted.
"use strict";
(() => {
  const order = ["auto", "light", "dark"];
  const root = document.documentElement;
  const saved = () => {
    try {
      return localStorage.getItem("jetllm.theme");
    } catch {
      return null; // storage may be refused: the choice then lasts as long as the page
    }
  };
  const show = (theme) => {
    root.dataset.theme = order.includes(theme) ? theme : "auto";
  };
  show(saved());
  document.addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    const name = () => {
      button.textContent = `Theme: ${root.dataset.theme}`;
    };
    button.addEventListener("click", () => {
      show(order[(order.indexOf(root.dataset.theme) + 1) % order.length]);
      name();
      try {
        localStorage.setItem("jetllm.theme", root.dataset.theme);
      } catch {
        return;
      }
    });
    name();
  });
})();
