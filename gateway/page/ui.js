// Small parts that every view uses.
import { h } from "./vendor/preact.js";
import { useLayoutEffect, useRef } from "./vendor/hooks.js";
import { signal } from "./vendor/signals.js";
import htm from "./vendor/htm.js";
import { has, t } from "./texts.js";

export const html = htm.bind(h);

const PATHS = {
  speak: "M5 10v4M9 7v10M13 4v16M17 8v8M21 11v2",
  voices: "M12 3a3.500 3.500 0 0 1 3.500 3.500v5a3.500 3.500 0 0 1-7 0v-5A3.500 3.500 0 0 1 12 3ZM5.500 11.500a6.500 6.500 0 0 0 13 0M12 18v3",
  history: "M3.500 12a8.500 8.500 0 1 0 2.800-6.300L3.500 8M3.500 3.500V8H8M12 7.500V12l3 2",
  batch: "M4 6.500h16M4 12h16M4 17.500h10",
  play: "M8 5.200v13.600a.6.6 0 0 0 .9.500l10.800-6.800a.6.6 0 0 0 0-1L8.900 4.700a.6.6 0 0 0-.9.500Z",
  pause: "M7.500 5h2.500v14H7.500ZM14 5h2.500v14H14Z",
  download: "M12 4v11M7.500 11l4.500 4.500 4.500-4.500M5 20h14",
  close: "M6 6l12 12M18 6 6 18",
  again: "M20 12a8 8 0 1 1-2.500-5.800L20 8.500M20 3.500v5h-5",
  remove: "M5 7h14M10 7V4.500h4V7M7 7l.8 12.500h8.400L17 7M10.200 11v5M13.800 11v5",
  search: "M10.500 17a6.500 6.500 0 1 0 0-13 6.500 6.500 0 0 0 0 13ZM15.500 15.500 20 20",
  down: "M6 9.500l6 6 6-6",
  check: "M5 12.500l4.500 4.500L19 7",
  upload: "M12 16V5M7.500 9 12 4.500 16.500 9M5 20h14",
  record: "M12 18a6 6 0 1 0 0-12 6 6 0 0 0 0 12Z",
  stop: "M7 7h10v10H7Z",
  plus: "M12 5v14M5 12h14",
  warn: "M12 4 2.800 20h18.400L12 4ZM12 10v4.500M12 17.300v.2",
  out: "M14 4H6v16h8M10 12h10M16.500 8.500 20 12l-3.500 3.500",
};
const SOLID = new Set(["play", "pause", "record", "stop"]);

export function Icon({ name }) {
  return html`<svg class=${`icon ${SOLID.has(name) ? "solid" : ""}`} viewBox="0 0 24 24" aria-hidden="true" focusable="false">
    <path d=${PATHS[name]} /></svg>`;
}

export function IconButton({ icon, label, class: extra = "", ...others }) {
  return html`<button type="button" class=${`icon-button ${extra}`} aria-label=${label} title=${label} ...${others}>
    <${Icon} name=${icon} /></button>`;
}

/** Seconds now; whatever shows a count-down reads it. */
export const now = signal(Date.now());
setInterval(() => { now.value = Date.now(); }, 500);

/** A dialog of the page; Escape and a click beside it close it. */
export function Dialog({ open, onClose, label, class: extra = "", children }) {
  const dialog = useRef(null);
  // Before the next key: after a paint, the first letters of a quick hand would go to what is behind it.
  useLayoutEffect(() => {
    if (open && !dialog.current.open) dialog.current.showModal();
    if (!open && dialog.current.open) dialog.current.close();
  }, [open]);
  return html`<dialog ref=${dialog} class=${extra} aria-label=${label} onClose=${onClose}
    onClick=${(event) => event.target === dialog.current && onClose()}>
    ${open && html`<div class="dialog-inside">${children}</div>`}</dialog>`;
}

export function Field({ label, hint, error, children, id }) {
  return html`<div class="field">
    <label for=${id}>${label}</label>
    ${children}
    ${hint && html`<p class="hint" id=${`${id}-hint`}>${hint}</p>`}
    ${error && html`<p class="problem" role="alert">${error}</p>`}
  </div>`;
}

export function Empty({ icon, title, action, children }) {
  return html`<div class="empty"><span class="empty-icon"><${Icon} name=${icon} /></span>
    <p class="empty-title">${title}</p>${children && html`<p>${children}</p>`}${action}</div>`;
}

/** What happened and what to do, for {code, message}; in the service's own words where the page has none. */
export function wordsFor(error) {
  if (typeof error === "string") return error;
  const key = `error_${error?.code}`;
  if (has(key)) return t(key, { message: error.message });
  return error?.message || t("unexpected", { message: error?.code ?? error });
}
