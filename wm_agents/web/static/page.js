// What all pages share: messages, the colour scheme, notices.

// A binary message: the length of its JSON (uint32), the JSON, then parts of the given sizes.
export function unpack(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const about = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  let at = 4 + length;
  const parts = about.sizes.map((size) => new Uint8Array(buffer, (at += size) - size, size));
  return [about, parts];
}

let timer;
export function toast(text, stays = false) {
  const box = document.getElementById("toast");
  box.textContent = text;
  box.classList.add("shown");
  clearTimeout(timer);
  if (!stays) timer = setTimeout(() => box.classList.remove("shown"), 5000);
}

// Dark or light as the system asks, until the button says otherwise.
export function startTheme(button, changed) {
  const light = matchMedia("(prefers-color-scheme: light)");
  let chosen = null;
  try { chosen = localStorage.getItem("theme"); } catch { /* Storage may be forbidden. */ }
  const apply = () => {
    document.documentElement.dataset.theme = chosen ?? (light.matches ? "light" : "dark");
    changed();
  };
  light.addEventListener("change", apply);
  button.onclick = () => {
    chosen = document.documentElement.dataset.theme === "light" ? "dark" : "light";
    try { localStorage.setItem("theme", chosen); } catch { /* The choice lasts until the page is closed. */ }
    apply();
  };
  apply();
}
