// What this browser keeps for the page. Without room or permission to keep it, the page works all the same.
const PREFIX = "glmtts.";

export function kept(name, otherwise) {
  try {
    const text = localStorage.getItem(PREFIX + name);
    return text === null ? otherwise : JSON.parse(text);
  } catch {
    return otherwise;
  }
}

/** Call `then` with the new value when another tab keeps something under this name. */
export function onKept(name, then) {
  addEventListener("storage", ({ key }) => key === PREFIX + name && then(kept(name, null)));
}

export function keep(name, value) {
  try {
    if (value === null) localStorage.removeItem(PREFIX + name);
    else localStorage.setItem(PREFIX + name, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}
