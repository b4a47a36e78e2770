// Esc stops a reply and returns the focus to the input box. The buttons and the input box get labels for screen readers.
addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || event.defaultPrevented) return;
  const stop = document.querySelector("#message button.stop-button");
  if (stop) { event.preventDefault(); stop.click(); document.querySelector("#message textarea")?.focus(); }
});
new MutationObserver(() => {
  document.querySelector("#message textarea:not([aria-label])")?.setAttribute("aria-label", "Message");
  document.querySelector("#message .submit-button:not([aria-label])")?.setAttribute("aria-label", "Send");
  document.querySelector("#message .stop-button:not([aria-label])")?.setAttribute("aria-label", "Stop");
  // The whole reasoning title toggles it, so its arrow button needs no tab stop.
  for (const title of document.querySelectorAll("#chat .thought-group .title")) {
    const open = String(title.classList.contains("expanded"));
    if (title.getAttribute("aria-expanded") !== open) title.setAttribute("aria-expanded", open);
    title.querySelector("button:not([tabindex])")?.setAttribute("tabindex", "-1");
  }
  const status = document.querySelector("#status:not([role])");
  if (status) { status.setAttribute("role", "status"); }
}).observe(document, { childList: true, subtree: true, attributes: true, attributeFilter: ["class"] });
