//! The program: reads the command line, sets up log lines, calls the library.

use std::process::ExitCode;

use quorate::cli;

/// Many small blocks go from thread to thread here, which the system's allocator is slow at.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = match cli::parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    if let Err(error) = cli.init_telemetry() {
        error.report();
        return ExitCode::from(error.exit_code());
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(cli::run(cli));
    // A read of standard input that nobody waits for any more must not hold the program up.
    runtime.shutdown_background();
    code
}
