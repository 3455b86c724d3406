"""Commands that look after models, configs, data and the machine: one a file, `main(args, prog)` its exit code."""
