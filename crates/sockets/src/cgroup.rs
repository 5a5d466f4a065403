//! Cgroups (cgroups(7)), and what they are called where systemd and containers have made them.

use std::ffi::OsStr;
use std::path::Path;

use socktrace_event::proc_text;

use crate::Error;

/// What the names of systemd's units end with that processes can be in (systemd.unit(5)).
const SUFFIXES: [&str; 6] = [".service", ".scope", ".slice", ".socket", ".mount", ".swap"];
/// Where cgroups are mounted, in the place that systemd and everybody else gives them.
const MOUNTED: &str = "/sys/fs/cgroup";
/// Digits of a container's id that its manager shows.
const SHORT_ID: usize = 12;
/// Digits of a container's id.
const ID: usize = 64;
/// What stands before the id in the name of a container's cgroup, and who makes it.
const MANAGERS: [(&str, &str); 6] = [
    ("docker-", "docker"),
    ("libpod-", "podman"),
    ("crio-", "cri-o"),
    ("cri-containerd-", "containerd"),
    ("lxc.payload.", "lxc"),
    ("machine-", "machine"),
];

/// Where a process is among cgroups: one place in each hierarchy (/proc/PID/cgroup).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cgroups(Vec<Place>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    /// Of version 1: `memory`, `cpu,cpuacct`, `name=systemd`; empty of version 2.
    controllers: String,
    path: String,
}

impl Cgroups {
    /// Empty if the process has ended.
    pub fn of(pid: u32) -> Self {
        Self::parse(&proc_text(&format!("/proc/{pid}/cgroup")).unwrap_or_default())
    }

    fn parse(text: &str) -> Self {
        let place = |line: &str| {
            let mut parts = line.splitn(3, ':').skip(1);
            let (controllers, path) = (parts.next()?.to_owned(), parts.next()?);
            let path = path.strip_suffix(" (deleted)").unwrap_or(path).to_owned();
            Some(Place { controllers, path })
        };
        Self(text.lines().filter_map(place).collect())
    }

    /// The place that says most: systemd's, else that of version 2, else the first that is not the root.
    pub fn path(&self) -> Option<&str> {
        let of = |controllers: &str| self.0.iter().find(|place| place.controllers == controllers);
        let places = [of("name=systemd"), of("")].into_iter().flatten().chain(&self.0);
        places.map(|place| &*place.path).find(|&path| path != "/")
    }

    /// The systemd unit that it is in, without the slices around it: `redis.service`.
    pub fn unit(&self) -> Option<&str> {
        let is_unit = |part: &&str| SUFFIXES.iter().any(|suffix| part.ends_with(suffix)) && !part.ends_with(".slice");
        self.path()?.rsplit('/').find(is_unit).filter(|unit| container(unit).is_none())
    }

    /// The container that it is in, as its manager shows it: `docker 0123456789ab`.
    pub fn container(&self) -> Option<String> {
        self.path()?.rsplit('/').find_map(container).or_else(|| {
            // Where Docker, and others, do without systemd.
            let mut parts = self.path()?.rsplit('/').skip_while(|part| !is_id(part));
            let id = parts.next()?;
            let manager = parts.next().filter(|manager| !manager.is_empty()).unwrap_or("container");
            Some(format!("{manager} {}", &id[..SHORT_ID]))
        })
    }

    /// Container and unit in a few words, else the cgroup; empty in the root.
    pub fn name(&self) -> String {
        match (self.container(), self.unit()) {
            (Some(container), Some(unit)) => format!("{container} {unit}"),
            (Some(container), None) => container,
            (None, Some(unit)) => unit.to_owned(),
            (None, None) => self.path().unwrap_or_default().to_owned(),
        }
    }

    /// Whether it is in a unit or a cgroup, or in one below that.
    pub fn is_in(&self, unit: &Unit) -> bool {
        self.0.iter().any(|place| unit.has(place))
    }
}

fn is_id(part: &str) -> bool {
    part.len() == ID && part.bytes().all(|b| b.is_ascii_hexdigit())
}

/// What a cgroup's name says of a container.
fn container(part: &str) -> Option<String> {
    let name = part.strip_suffix(".scope").unwrap_or(part);
    MANAGERS.iter().find_map(|(prefix, manager)| {
        let name = name.strip_prefix(prefix).filter(|name| !name.is_empty())?;
        let shown = if is_id(name) { &name[..SHORT_ID] } else { name };
        Some(format!("{manager} {shown}"))
    })
}

/// A unit or a cgroup as people name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unit {
    /// By the name of a unit, of a container or of the cgroup itself.
    Name(String),
    /// By the cgroup's path.
    Path {
        /// In the hierarchies that have this controller; None: in any.
        controller: Option<String>,
        /// From the root of the hierarchy on.
        path: String,
    },
}

impl Unit {
    /// `redis`, `redis.service`, `user.slice`, a container's id or its beginning, `/system.slice/redis.service`, or such a path
    /// below /sys/fs/cgroup.
    ///
    /// # Errors
    ///
    /// It is empty, the root or no UTF-8.
    pub fn parse(text: &OsStr) -> Result<Self, Error> {
        Self::parse_with(text, Path::new(MOUNTED).join("cgroup.controllers").exists())
    }

    /// `is_unified`: what is mounted is the hierarchy of version 2, not a folder with one for each controller.
    fn parse_with(text: &OsStr, is_unified: bool) -> Result<Self, Error> {
        let error = |why| Error::Unit(text.display().to_string(), why);
        let name = text.to_str().ok_or_else(|| error("no unit has such a name, which is no UTF-8"))?;
        let name = if name.len() > 1 { name.trim_end_matches('/') } else { name };
        let (controller, path) = match name.strip_prefix(MOUNTED) {
            Some(path) if is_unified => (None, path),
            Some(path) => match path.trim_start_matches('/').split_once('/') {
                Some((controller, path)) => (Some(controller.to_owned()), path),
                None => (None, ""),
            },
            None if name.starts_with('/') => (None, name),
            None if name.is_empty() || name.contains('/') => {
                return Err(error("takes a unit's name, or a cgroup's path that begins with /"));
            }
            None => return Ok(Self::Name(name.to_owned())),
        };
        match path.trim_matches('/') {
            "" => Err(error("is the root, in which every process is: name a unit or a cgroup below it")),
            path => Ok(Self::Path { controller, path: format!("/{path}") }),
        }
    }

    fn has(&self, place: &Place) -> bool {
        match self {
            Self::Name(name) => place.path.split('/').any(|part| is_called(part, name)),
            Self::Path { controller, path } => {
                let below =
                    place.path.strip_prefix(&**path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
                below && controller.as_ref().is_none_or(|controller| has_controller(&place.controllers, controller))
            }
        }
    }
}

/// Whether a hierarchy is the one that is mounted in a folder of this name.
fn has_controller(controllers: &str, folder: &str) -> bool {
    let named = controllers.strip_prefix("name=").unwrap_or(controllers);
    match folder {
        "unified" => controllers.is_empty(),
        _ => named == folder || controllers.split(',').any(|controller| controller == folder),
    }
}

fn is_called(part: &str, name: &str) -> bool {
    if part == name || SUFFIXES[..2].iter().any(|suffix| part.strip_suffix(suffix) == Some(name)) {
        return true;
    }
    // A container's id, whole or its beginning.
    let bare = part.strip_suffix(".scope").unwrap_or(part);
    let id = MANAGERS.iter().find_map(|(prefix, _)| bare.strip_prefix(prefix)).unwrap_or(bare);
    id == name || (is_id(id) && name.len() >= SHORT_ID && id.starts_with(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn of(path: &str) -> Cgroups {
        Cgroups::parse(&format!("0::{path}\n"))
    }

    fn is_in(cgroups: &Cgroups, unit: &str) -> bool {
        cgroups.is_in(&Unit::parse_with(unit.as_ref(), true).unwrap())
    }

    #[test]
    fn units_and_containers() {
        let name = |path: &str| of(path).name();
        assert_eq!(name("/system.slice/redis-server.service"), "redis-server.service");
        assert_eq!(name("/user.slice/user-1000.slice/user@1000.service/app.slice/dbus.service"), "dbus.service");
        assert_eq!(name("/user.slice/user-1000.slice/session-3.scope"), "session-3.scope");
        assert_eq!(name(&format!("/system.slice/docker-{HEX}.scope")), "docker 0123456789ab");
        assert_eq!(name(&format!("/docker/{HEX}")), "docker 0123456789ab");
        assert_eq!(name(&format!("/machine.slice/libpod-{HEX}.scope/container")), "podman 0123456789ab");
        assert_eq!(name(&format!("/docker/{HEX}/system.slice/cron.service")), "docker 0123456789ab cron.service");
        assert_eq!(name("/lxc.payload.web/system.slice/cron.service"), "lxc web cron.service");
        assert_eq!((name("/own/group"), name("/")), ("/own/group".into(), String::new()));
    }

    #[test]
    fn hierarchies_of_version_1() {
        let cgroups =
            Cgroups::parse("9:name=systemd:/system.slice/a.service\n4:memory:/limited\n2:cpu,cpuacct:/\n0::/\n");
        assert_eq!(cgroups.unit(), Some("a.service"));
        assert!(is_in(&cgroups, "a") && is_in(&cgroups, "a.service") && is_in(&cgroups, "limited"));
        assert_eq!(Cgroups::parse("9:name=systemd:/\n4:memory:/limited\n0::/\n").path(), Some("/limited"));
        let by_path = |path: &str| cgroups.is_in(&Unit::parse_with(path.as_ref(), false).unwrap());
        assert!(by_path("/sys/fs/cgroup/memory/limited/") && by_path("/limited"));
        assert!(by_path("/sys/fs/cgroup/systemd/system.slice") && !by_path("/sys/fs/cgroup/cpu/limited"));
        assert!(!by_path("/lim") && !by_path("/sys/fs/cgroup/unified/limited"));
    }

    #[test]
    fn what_people_call_them() {
        let redis = of("/system.slice/redis.service/worker");
        for unit in ["redis", "redis.service", "worker", "system.slice", "/system.slice", "/system.slice/redis.service"]
        {
            assert!(is_in(&redis, unit), "{unit}");
        }
        assert!(is_in(&redis, "/sys/fs/cgroup/system.slice/redis.service"));
        for unit in ["red", "redis.scope", "system", "/system.slice/redis", "/redis.service"] {
            assert!(!is_in(&redis, unit), "{unit}");
        }
        let container = of(&format!("/system.slice/docker-{HEX}.scope"));
        assert!(is_in(&container, HEX) && is_in(&container, &HEX[..12]) && is_in(&container, &format!("docker-{HEX}")));
        assert!(!is_in(&container, "0123") && is_in(&of("/lxc.payload.web/init.scope"), "web"));
        assert!(is_in(&of("/gone.service (deleted)"), "gone"));
    }

    #[test]
    fn the_root_is_no_unit() {
        for text in ["", "/", "//", "/sys/fs/cgroup", "/sys/fs/cgroup/", "a/b"] {
            assert!(Unit::parse_with(text.as_ref(), true).is_err(), "{text}");
        }
        assert!(Unit::parse_with("/sys/fs/cgroup/memory".as_ref(), false).is_err());
    }
}
