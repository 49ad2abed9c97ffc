// Light or dark before anything is painted: the reader's choice where it was stored, else the system's.
"use strict";
(() => {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const stored = () => {
    try {
      return localStorage.getItem("wsvad-theme");
    } catch {
      return null; // storage is closed to pages from files in some browsers
    }
  };
  let chosen = stored();
  const apply = () => {
    root.dataset.theme = chosen ?? (system.matches ? "dark" : "light");
    root.dispatchEvent(new Event("theme"));
  };
  system.addEventListener("change", apply);
  root.addEventListener("toggle-theme", () => {
    chosen = root.dataset.theme === "dark" ? "light" : "dark";
    try {
      localStorage.setItem("wsvad-theme", chosen);
    } catch {
      // it lasts as long as the page, then
    }
    apply();
  });
  apply();
})();
