"use strict";

// Each button copies the text of the element that its data-copy names, in the same paragraph.
for (const button of document.querySelectorAll("button[data-copy]")) {
  button.addEventListener("click", async () => {
    const source = button.parentElement.querySelector(button.dataset.copy);
    try {
      await navigator.clipboard.writeText(source.textContent);
      button.textContent = button.dataset.done;
    } catch {
      // No clipboard without HTTPS: select the text, so that the usual keys copy it.
      window.getSelection().selectAllChildren(source);
    }
  });
}
