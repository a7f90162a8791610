"""What benchmarks are run on, made up."""
