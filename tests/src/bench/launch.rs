//! Running a program as a runtime runs a plugin, and taking the time from before fork to after wait.

use std::io::{Read, Seek, SeekFrom, Write};
use std::process::{Command, Stdio};
use std::time::Instant;

/// How a program was run.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// Wall-clock time, in microseconds.
    pub micros: f64,
    /// Whether it ended with exit code 0.
    pub success: bool,
}

/// A file to be read from its beginning: a pipe's other end would have to be written meanwhile.
pub(super) fn stdin_of(bytes: &[u8]) -> std::io::Result<Stdio> {
    let mut file = tempfile::tempfile()?;
    file.write_all(bytes)?;
    file.seek(SeekFrom::Start(0))?;
    Ok(file.into())
}

/// Runs a program in the caller's namespaces; its output is dropped.
pub fn timed(command: &mut Command, stdin: &[u8]) -> std::io::Result<Run> {
    command.stdin(stdin_of(stdin)?).stdout(Stdio::null()).stderr(Stdio::null());
    let begun = Instant::now();
    let status = command.spawn()?.wait()?;
    Ok(Run { micros: begun.elapsed().as_secs_f64() * 1e6, success: status.success() })
}

/// The same, with what it wrote.
pub fn timed_with_output(command: &mut Command, stdin: &[u8]) -> std::io::Result<(Run, Vec<u8>)> {
    let mut stdout = tempfile::tempfile()?;
    command.stdin(stdin_of(stdin)?).stdout(stdout.try_clone()?).stderr(Stdio::null());
    let begun = Instant::now();
    let status = command.spawn()?.wait()?;
    let run = Run { micros: begun.elapsed().as_secs_f64() * 1e6, success: status.success() };
    let mut written = Vec::new();
    stdout.seek(SeekFrom::Start(0))?;
    stdout.read_to_end(&mut written)?;
    Ok((run, written))
}

/// Runs programs all at the same time; gives the time until the last has ended and how many failed.
pub fn timed_together(commands: &mut [Command], stdins: &[Vec<u8>]) -> std::io::Result<(f64, usize)> {
    for (command, stdin) in commands.iter_mut().zip(stdins) {
        command.stdin(stdin_of(stdin)?).stdout(Stdio::null()).stderr(Stdio::null());
    }
    let begun = Instant::now();
    let children: Vec<_> = commands.iter_mut().map(Command::spawn).collect();
    let mut failures = 0;
    for child in children {
        failures += usize::from(!child?.wait()?.success());
    }
    Ok((begun.elapsed().as_secs_f64() * 1e6, failures))
}
