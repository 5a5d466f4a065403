//! Gives a target inputs: `socktrace-fuzz TARGET FILE...`, to see again what went wrong.

use std::process::ExitCode;

use socktrace_fuzz::Target;

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let name = args.next().unwrap_or_default();
    match replay(&name, args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("socktrace-fuzz TARGET FILE...: {error}");
            ExitCode::FAILURE
        }
    }
}

fn replay(name: &str, files: impl Iterator<Item = String>) -> Result<(), String> {
    let target = Target::named(name)?;
    for file in files {
        let input = std::fs::read(&file).map_err(|error| format!("{file}: {error}"))?;
        println!("{name}: {file}, {} bytes", input.len());
        (target.run)(&input);
    }
    Ok(())
}
