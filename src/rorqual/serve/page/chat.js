// Esc stops a reply; the box has a name for those who do not see it, and keeps the focus.
addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || event.defaultPrevented) return;
  const stop = document.querySelector("#message button.stop-button");
  if (stop) { event.preventDefault(); stop.click(); document.querySelector("#message textarea")?.focus(); }
});
new MutationObserver(() => {
  document.querySelector("#message textarea:not([aria-label])")?.setAttribute("aria-label", "Message");
  document.querySelector("#message .submit-button:not([aria-label])")?.setAttribute("aria-label", "Send");
  document.querySelector("#message .stop-button:not([aria-label])")?.setAttribute("aria-label", "Stop");
  const status = document.querySelector("#status:not([role])");
  if (status) { status.setAttribute("role", "status"); }
}).observe(document, { childList: true, subtree: true });
