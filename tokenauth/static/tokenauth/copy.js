"use strict";

// Each button copies the text of the element whose id its data-copy names.
const copied = document.querySelector(".tokenauth-copied");

function select(source) {
  const range = document.createRange();
  range.selectNodeContents(source);
  const selection = window.getSelection();
  selection.removeAllRanges();
  selection.addRange(range);
}

async function copy(source) {
  try {
    await navigator.clipboard.writeText(source.textContent);
    return true;
  } catch {
    // Browsers have no clipboard on pages over plain HTTP.
    select(source);
    return document.execCommand("copy");
  }
}

for (const button of document.querySelectorAll("button[data-copy]")) {
  button.addEventListener("click", async () => {
    const isCopied = await copy(document.getElementById(button.dataset.copy));
    const outcome = isCopied ? copied.dataset.copied : copied.dataset.selected;
    copied.textContent = `${outcome} ${button.dataset.name}`;
  });
}

// A page that the browser keeps for "Back" must not show the plaintext again.
window.addEventListener("pagehide", () => {
  for (const source of document.querySelectorAll(".tokenauth-copy code")) source.textContent = "…";
});
