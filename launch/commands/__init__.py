"""What the launcher's commands do: submit and resume, status, logs and cancel, doctor, verify-resume."""
