//! `socktrace show`: a recorded directory, once or as it grows.

use std::process::ExitCode;

use anyhow::{Error, Result};
use socktrace_event::{End, Sink, notice};
use socktrace_recording::{Follow, Next};
use socktrace_view::{Scope, Shown, Traffic, View};

use crate::args::ShowArgs;
use crate::output::Destination;

/// `socktrace show`
pub fn show(args: &ShowArgs) -> Result<ExitCode> {
    let (scope, selection) = args.filter.both()?;
    let mut recording = Follow::open(&args.dir, args.follow)?;
    let destination = Destination::open(&args.view, true)?;
    let view = View::new(args.view.style(destination.colour), Traffic::new(selection, None));
    let mut shown = Shown::new(view, destination, false);
    let is_removed = match show_all(args, &mut recording, scope, &mut shown) {
        Ok(is_removed) => is_removed,
        // The reader has gone.
        Err(End::Enough) => return Ok(ExitCode::SUCCESS),
        Err(End::Failed(error)) => {
            // What could be read is shown.
            let _ = shown.flush();
            return Err(error);
        }
    };
    let mut condition = recording.ordered().condition();
    // Of one that is removed nobody knows, and that has been said.
    condition.has_ended |= is_removed;
    condition.sentences(&args.dir).iter().for_each(|sentence| notice(sentence));
    let conclusions = shown.view().traffic.conclusions("no probe was heard of in this recording");
    conclusions.iter().for_each(|sentence| notice(sentence));
    Ok(ExitCode::SUCCESS)
}

/// Shows what there is and what comes, up to the end, and returns whether that is the recording's removal.
fn show_all(
    args: &ShowArgs,
    recording: &mut Follow,
    mut scope: Scope,
    shown: &mut Shown<Destination>,
) -> Result<bool, End<Error>> {
    let dir = args.dir.display();
    loop {
        let next = recording.next_event().map_err(Error::from)?;
        if let Next::Event(recorded) = &next {
            shown.recorded(recorded, &mut scope)?;
            continue;
        }
        shown.flush()?;
        match next {
            Next::Event(_) | Next::Pause => {}
            Next::Replaced => {
                notice(&format!("{dir}: its events.jsonl has been emptied or replaced: what is there now is shown"));
            }
            Next::Removed => {
                notice(&format!("{dir}: its events.jsonl has been removed: nothing more can be shown"));
                return shown.end().map(|()| true);
            }
            Next::End => return shown.end().map(|()| false),
        }
    }
}
