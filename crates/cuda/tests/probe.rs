//! The probe on this machine as it is, and on machines that it is made to see: drivers that are absent, old, broken or whole.
//!
//! A library is opened once a process, so every made-up machine is a process of its own: this test binary run again.

// The first test reports to the others through its output.
#![allow(clippy::print_stdout)]

use halfbyte_cuda::{Error, probe};

#[test]
fn report_of_this_process() {
    let probe = probe();
    println!("{probe}");
    println!("{:?}", probe.driver);
    // Holds on every machine, with or without a GPU.
    assert_eq!(probe.driver.is_err(), probe.devices.is_empty());
    let names: Vec<_> = probe.libraries.iter().map(|l| l.name).collect();
    assert_eq!(names, ["driver", "NVRTC", "cuBLASLt"]);
    let no_library = matches!(probe.driver, Err(Error::NoDriver { .. }));
    assert_eq!(no_library, probe.libraries[0].found.is_none());
    assert_eq!(halfbyte_cuda::probe(), probe, "asking twice gives the same answer");
}

#[cfg(target_os = "linux")]
mod made_up_machines {
    use std::path::{Path, PathBuf};
    use std::process::Command;

    /// The test above.
    const CHILD: &str = "report_of_this_process";

    /// Compiles the stub with these definitions and gives the folder that holds it.
    fn stub(name: &str, defines: &[&str]) -> PathBuf {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("stub-driver-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stub_driver.c");
        // zstd, which data depends on, needs a C compiler as well: every machine that builds the workspace has one.
        let mut cc = Command::new(std::env::var("CC").unwrap_or_else(|_| "cc".into()));
        cc.args(["-shared", "-fPIC", "-o"])
            .arg(dir.join("libcuda.so"))
            .args(defines.iter().map(|d| format!("-D{d}")))
            .arg(source);
        let out = cc.output().expect("a C compiler starts");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        dir
    }

    /// What a process says whose loader looks into `dir` first.
    fn report_with(dir: &Path) -> String {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args([CHILD, "--exact", "--nocapture", "--test-threads=1"]).env("LD_LIBRARY_PATH", dir);
        let out = child.output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(out.status.success(), "{text}\n{}", String::from_utf8_lossy(&out.stderr));
        let _ = std::fs::remove_dir_all(dir);
        text
    }

    #[track_caller]
    fn assert_says(report: &str, parts: &[&str]) {
        for part in parts {
            assert!(report.contains(part), "{report}\nlacks: {part}");
        }
    }

    #[test]
    fn a_whole_driver_lists_its_devices() {
        let dir = stub("whole", &["VERSION=13010", "DEVICES=2", "INIT=0"]);
        let library = dir.join("libcuda.so").display().to_string();
        let report = report_with(&dir);
        assert_says(
            &report,
            &[
                "supports CUDA 13.1",
                "cuda:0 Stub A, compute capability 8.6, 2.0 GiB",
                "cuda:1 Stub B",
                "3.0 GiB",
                &library,
            ],
        );
    }

    #[test]
    fn a_driver_without_a_device_says_so() {
        assert_says(
            &report_with(&stub("no-device", &["VERSION=12080", "DEVICES=0", "INIT=100"])),
            &["found no device", "--device cpu"],
        );
        assert_says(
            &report_with(&stub("zero", &["VERSION=12080", "DEVICES=0", "INIT=0"])),
            &["found no device", "--device cpu"],
        );
    }

    #[test]
    fn an_old_driver_is_not_called_any_further() {
        // Its cuInit would fail with another message.
        let report = report_with(&stub("old", &["VERSION=11020", "DEVICES=1", "INIT=999"]));
        assert_says(&report, &["supports CUDA 11.2, at least 11.4 is needed", "update the NVIDIA driver"]);
    }

    #[test]
    fn a_missing_function_and_a_failing_call_are_errors() {
        let report = report_with(&stub("no-count", &["VERSION=12080", "DEVICES=1", "INIT=0", "NO_COUNT"]));
        assert_says(&report, &["has no function cuDeviceGetCount", "libcuda.so"]);
        let report = report_with(&stub("failing", &["VERSION=12080", "DEVICES=1", "INIT=999"]));
        assert_says(&report, &["cuInit failed with CUDA_ERROR_UNKNOWN (999)"]);
        let report = report_with(&stub("unnamed", &["VERSION=12080", "DEVICES=1", "INIT=777"]));
        assert_says(&report, &["cuInit failed with an unnamed error (777)"]);
    }
}
