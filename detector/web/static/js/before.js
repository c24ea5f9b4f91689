// Before the first paint, so that nobody who chose dark is shown light: a classic script, which modules are too late for.
(() => {
  let chosen = null;
  try {
    chosen = localStorage.getItem("longwatch.theme");
  } catch {
    // storage may be forbidden: then the theme is the system's
  }
  const dark = chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = dark ? "dark" : "light";
})();
