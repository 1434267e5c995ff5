"""Many runs compared: methods and seeds, with a control."""
