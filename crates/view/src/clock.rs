//! When an event happened, as whoever looks wants it.

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// How times are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Time {
    /// Local time of day.
    #[default]
    Local,
    /// Seconds since the first event.
    Relative,
    /// Seconds since the Unix epoch.
    Epoch,
}

/// Writes times.
#[derive(Debug)]
pub struct Clock {
    style: Time,
    zone: TimeZone,
    first: Option<u64>,
}

impl Clock {
    /// A clock that does not know the first event yet.
    pub fn new(style: Time) -> Self {
        let zone = if style == Time::Local { TimeZone::system() } else { TimeZone::UTC };
        Self { style, zone, first: None }
    }

    /// Remembers the first event's time.
    pub fn start(&mut self, ns: u64) {
        self.first.get_or_insert(ns);
    }

    /// A time, given in nanoseconds since the Unix epoch.
    pub fn show(&self, ns: u64) -> String {
        match self.style {
            Time::Local => match Timestamp::from_nanosecond(ns.into()) {
                Ok(time) => time.to_zoned(self.zone.clone()).strftime("%H:%M:%S%.6f").to_string(),
                // Beyond the year 9999: an agent's clock is not to be trusted.
                Err(_) => seconds(ns.into()),
            },
            Time::Relative => {
                let first = self.first.unwrap_or(ns);
                seconds(i128::from(ns) - i128::from(first))
            }
            Time::Epoch => seconds(ns.into()),
        }
    }
}

fn seconds(ns: i128) -> String {
    let (sign, us) = (if ns < 0 { "-" } else { "" }, ns.unsigned_abs() / 1000);
    format!("{sign}{}.{:06}", us / 1_000_000, us % 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn styles() {
        let mut clock = Clock::new(Time::Relative);
        clock.start(5_000_000_000);
        assert_eq!(clock.show(6_000_001_999), "1.000001");
        assert_eq!(clock.show(4_500_000_000), "-0.500000");
        assert_eq!(Clock::new(Time::Epoch).show(1_700_000_000_000_001_000), "1700000000.000001");
        let clock = Clock { style: Time::Local, zone: TimeZone::UTC, first: None };
        assert_eq!(clock.show(1_000_000), "00:00:00.001000");
        assert_eq!(clock.show(u64::MAX).len(), "23:34:33.709551".len());
    }
}
