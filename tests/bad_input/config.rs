//! Configuration files.

use crate::common::{TempFile, run};
use crate::{USAGE, kernel, refused};

#[test]
fn configuration_files() {
    let with = |content: &str| {
        let file = TempFile::new("vm.toml", content.as_bytes());
        let outcome = run(&["run", "--config", file.str(), "--dry-run"]);
        (file, outcome)
    };
    let (_f, outcome) = with(&format!("kernel = \"{}\"\nmemroy = \"1G\"\n", kernel()));
    refused(
        &outcome,
        USAGE,
        &["unknown key 'memroy'", "did you mean 'memory'?"],
    );
    let (_f, outcome) = with("kernel = 5\n");
    refused(&outcome, USAGE, &["vm.toml, line 1"]);
    let (_f, outcome) = with("\n\nkernel = \n");
    refused(&outcome, USAGE, &["vm.toml, line 3"]);
    let (_f, outcome) = with("memory = \"1G\"\n");
    refused(&outcome, USAGE, &["no kernel"]);
    refused(
        &run(&["run", "--config", "/nonexistent.toml"]),
        USAGE,
        &["/nonexistent.toml"],
    );
    refused(&run(&["run", "--config", "/tmp"]), USAGE, &["/tmp"]);
    let (_f, outcome) = with(&format!(
        "kernel = \"{}\"\nmemory = \"1G\"\ncpus = 3\n",
        kernel()
    ));
    assert_eq!(outcome.code(), 0, "{outcome:?}");
    assert!(outcome.stdout.contains("memory    1024 MiB") && outcome.stdout.contains("3 cores"));
}
