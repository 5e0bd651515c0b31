"use strict";

// A date selects "at the time below"; any other choice clears the date.
window.addEventListener("DOMContentLoaded", () => {
  const fields = ["id_expires_at_0", "id_expires_at_1"].map((id) => document.getElementById(id));
  const choices = document.querySelectorAll("input[name=lifetime]");
  const custom = document.querySelector("input[name=lifetime][value=custom]");
  if (!custom || fields.includes(null)) return;
  for (const choice of choices) {
    choice.addEventListener("change", () => {
      if (custom.checked) fields[0].focus();
      else for (const field of fields) field.value = "";
    });
  }
  // Django's calendar sets the value and then moves the focus to the field.
  for (const field of fields) {
    for (const name of ["input", "focus", "change"]) {
      field.addEventListener(name, () => { if (field.value) custom.checked = true; });
    }
  }
});
