//! What every frontend of socktrace shares, whether it prints lines, draws a screen or writes a page.
//!
//! ```text
//! event ─► Scope ─► Traffic ─┬► View ─► Lines ─► Printer     a line a message, hex dumps, JSON, the table
//! + payload         │        ├► Line: pieces with a role each, for what is drawn in another way
//!                   │        └► messages, connections, processes, losses: for what is no line at all
//!                   └ Selection, summary: which messages, and what they say
//! ```
//!
//! [`Scope`] and [`Selection`] are made of one [`Filter`]. [`Traffic`] learns from every event: names of processes, both ends
//! of connections, what was lost; and puts messages together whose bytes took several events. [`View`] makes lines of it,
//! [`Shown`] is a [`Sink`](socktrace_event::Sink) around that; [`mod@line`] has the same before it is text. Nothing here
//! writes to a terminal or a file, or knows a command line.
//!
//! ```
//! use socktrace_event::{Captured, Data, Direction, Event, What};
//! use socktrace_view::{Filter, Lines, Selection, Style, Traffic, View};
//!
//! let selection = Selection::new(&Filter { grep: Some("GET".into()), ..Filter::default() })?;
//! let mut view = View::new(Style::default(), Traffic::new(selection, None));
//! let mut lines = Lines::default();
//! let data = Data { path: "/run/x.sock".into(), direction: Direction::Out, size: 3, ..Data::default() };
//! let event = Event { pid: Some(7), ..Event::now(What::Data(data)) };
//! view.show(&event, Captured { bytes: b"GET", missing: None }, None, &mut lines);
//! view.show(&event, Captured { bytes: b"PUT", missing: None }, None, &mut lines);
//! let text = String::from_utf8(lines.bytes)?;
//! assert!(text.ends_with(" ?[7] -> /run/x.sock 3 bytes \"GET\"\n") && text.lines().count() == 1);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod clock;
pub mod connections;
mod filter;
pub mod hexdump;
pub mod json;
pub mod line;
mod lines;
pub mod losses;
pub mod message;
mod pattern;
pub mod processes;
mod shown;
mod style;
pub mod summary;
mod table;
mod traffic;
mod unseen;
mod view;

pub use clock::{Clock, Time};
pub use filter::{Filter, Invalid, Scope, Selection};
pub use lines::Lines;
pub use pattern::Globs;
pub use shown::{Printer, Shown};
pub use style::{Form, Style, is_utf8_locale};
pub use traffic::Traffic;
pub use unseen::IsGo;
pub use view::View;
