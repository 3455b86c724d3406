// What the parts of the dashboard share: requests, elements, and values as words.
import { short } from "./charts.js";

const token = new URLSearchParams(location.search).get("token");

export function address(path, query = {}) {
  const url = new URL(path, location.href);
  url.search = new URLSearchParams({ ...query, ...(token ? { token } : {}) });
  url.hash = "";
  return url;
}

export async function ask(path, query = {}) {
  let answer;
  try { answer = await fetch(address(path, query)); } catch { throw new Error("The server does not answer. Start `wm dashboard` again, and reload."); }
  const found = await answer.json();
  if (!answer.ok) throw new Error(found.error ?? answer.statusText);
  return found;
}

export const make = (tag, properties = {}, ...children) => {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
};

export const ago = (s) => (s < 90 ? `${Math.round(s)} s` : s < 5400 ? `${Math.round(s / 60)} min` : s < 129600 ? `${+(s / 3600).toFixed(1)} h` : `${Math.round(s / 86400)} d`);
export const size = (bytes) => (bytes >= 1e9 ? `${(bytes / 1e9).toFixed(1)} GB` : bytes >= 1e6 ? `${(bytes / 1e6).toFixed(0)} MB` : `${(bytes / 1e3).toFixed(0)} kB`);
export const text = (x) => (Math.abs(x) >= 1000 ? Math.round(x).toLocaleString("en") : short(x));
