// What this browser keeps for the page. Without room or permission to keep it, the page works all the same.
const PREFIX = "glmtts.";
/** The customer of what is kept, under this name. */
const OWNER = "customer";
/** Of the browser, and of no customer. */
const LANGUAGE = "language";

export function kept(name, otherwise) {
  try {
    const text = localStorage.getItem(PREFIX + name);
    return text === null ? otherwise : JSON.parse(text);
  } catch {
    return otherwise;
  }
}

/** The customer whose things this page shows: the name of a key, or "" without one; null before it is known. */
let owner = kept(OWNER, null);

/** Show what is kept to this customer. False for another's: that is removed, and the page loads anew without it. */
export function claim(customer) {
  const before = owner ?? kept(OWNER, null);
  if (before !== null && before !== customer) {
    startAnew();
    return false;
  }
  owner = customer;
  write(OWNER, customer);
  return true;
}

/** Remove what is kept for a customer, and load the page anew, which has it in memory too. Other tabs follow. */
export function startAnew() {
  try {
    for (const key of Object.keys(localStorage)) {
      if (key.startsWith(PREFIX) && key !== PREFIX + LANGUAGE) localStorage.removeItem(key);
    }
  } catch {
    // Without storage there is nothing to remove.
  }
  location.reload();
}

function leaveWithOthers() {
  if (owner !== null && kept(OWNER, null) !== owner) location.reload();
}

addEventListener("storage", ({ key }) => key === PREFIX + OWNER && leaveWithOthers());
// A page that the browser has put away hears of no change.
addEventListener("pageshow", ({ persisted }) => persisted && leaveWithOthers());

/** Call `then` with the new value when another tab keeps something under this name. */
export function onKept(name, then) {
  addEventListener("storage", ({ key }) => key === PREFIX + name && then(kept(name, null)));
}

export function keep(name, value) {
  // A request that ends after the customer has left keeps nothing.
  return (name === LANGUAGE || kept(OWNER, null) === owner) && write(name, value);
}

function write(name, value) {
  try {
    if (value === null) localStorage.removeItem(PREFIX + name);
    else localStorage.setItem(PREFIX + name, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}
