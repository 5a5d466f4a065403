//! strace's notation for a call's arguments and result, as `-xx -yy` prints it (strace(1)).
//!
//! Under `-xx` every byte of a string and of a path is `\xNN`, so that no quotation mark or bracket within one can be
//! taken for the notation's own.

/// One argument, or a part of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A string, and whether it is longer than strace shows.
    Text(Vec<u8>, bool),
    /// A structure: members with their names, empty for one without.
    Struct(Vec<(String, Self)>),
    /// An array.
    Array(Vec<Self>),
    /// What it was before the call, and after.
    Changed(Box<Self>, Box<Self>),
    /// Anything else, as it stands there: numbers, flags, descriptors with their `<…>`.
    Word(String),
}

impl Value {
    /// A structure's member.
    pub fn member(&self, name: &str) -> Option<&Self> {
        match self.after() {
            Self::Struct(members) => members.iter().find(|(has, _)| has == name).map(|(_, value)| value),
            _ => None,
        }
    }

    /// An array's elements; none of anything else.
    pub fn elements(&self) -> &[Self] {
        match self.after() {
            Self::Array(elements) => elements,
            _ => &[],
        }
    }

    /// A word's text; empty for anything else.
    pub fn word(&self) -> &str {
        match self.after() {
            Self::Word(word) => word,
            _ => "",
        }
    }

    /// Its value once the call has returned.
    pub fn after(&self) -> &Self {
        match self {
            Self::Changed(_, after) => after,
            value => value,
        }
    }
}

/// A call's arguments, by position: `name=` before one is left out. `text` begins behind the opening parenthesis; what
/// follows the closing one is given back with them.
pub fn arguments(text: &str) -> Result<(Vec<Value>, &str), String> {
    let mut reader = Reader { rest: text };
    let members = reader.members(')')?;
    Ok((members.into_iter().map(|(_, value)| value).collect(), reader.rest))
}

struct Reader<'a> {
    rest: &'a str,
}

impl<'a> Reader<'a> {
    fn takes(&mut self, expected: &str) -> bool {
        let behind = self.rest.strip_prefix(expected);
        self.rest = behind.unwrap_or(self.rest);
        behind.is_some()
    }

    /// The text before a position, which is gone through by that.
    fn take(&mut self, end: usize) -> &'a str {
        let (before, behind) = self.rest.split_at(end);
        self.rest = behind;
        before
    }

    /// What stands between brackets, up to and with the closing one.
    fn members(&mut self, closing: char) -> Result<Vec<(String, Value)>, String> {
        let mut members = Vec::new();
        loop {
            self.rest = self.rest.trim_start();
            if self.takes(closing.encode_utf8(&mut [0; 4])) {
                return Ok(members);
            }
            if !members.is_empty() && !self.takes(",") {
                return Err(format!("{closing} or a comma expected at: {:.60}", self.rest));
            }
            self.rest = self.rest.trim_start();
            let name = self.name();
            members.push((name, self.value()?));
        }
    }

    /// `name=`, if it is there.
    fn name(&mut self) -> String {
        let end = self.rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(0);
        let behind = &self.rest[end..];
        if end == 0 || !behind.starts_with('=') || behind.starts_with("=>") {
            return String::new();
        }
        let name = self.take(end).to_owned();
        self.takes("=");
        name
    }

    fn value(&mut self) -> Result<Value, String> {
        let value = if self.takes("{") {
            Value::Struct(self.members('}')?)
        } else if self.takes("[") {
            Value::Array(self.members(']')?.into_iter().map(|(_, value)| value).collect())
        } else if self.takes("@\"") {
            // The first byte of an abstract name is 0 (unix(7)).
            self.string(vec![0])?
        } else if self.takes("\"") {
            self.string(Vec::new())?
        } else {
            self.word()?
        };
        if self.takes(" /*") {
            let end = self.rest.find("*/").ok_or_else(|| format!("a comment without its end: {:.60}", self.rest))?;
            self.take(end + "*/".len());
        }
        if self.takes(" => ") {
            return Ok(Value::Changed(value.into(), self.value()?.into()));
        }
        Ok(value)
    }

    /// `\xNN…"`, with `...` behind it if there is more of it.
    fn string(&mut self, mut bytes: Vec<u8>) -> Result<Value, String> {
        let end = self.rest.find('"').ok_or("a string without its end")?;
        let mut escaped = self.take(end).split("\\x");
        if escaped.next() != Some("") {
            return Err("a string that is not in hexadecimal: is it strace -xx?".into());
        }
        for byte in escaped {
            let byte = u8::from_str_radix(byte, 16).map_err(|_| format!("{byte:?} in a string"))?;
            bytes.push(byte);
        }
        self.takes("\"");
        Ok(Value::Text(bytes, self.takes("...")))
    }

    /// Up to a comma or closing bracket that is not within brackets of the word's own.
    fn word(&mut self) -> Result<Value, String> {
        let mut open: Vec<char> = Vec::new();
        for (at, c) in self.rest.char_indices() {
            let behind = &self.rest[at..];
            let ends = matches!(c, ',' | ')' | ']' | '}') || behind.starts_with(" => ") || behind.starts_with(" /*");
            match c {
                _ if open.is_empty() && ends => return Ok(Value::Word(self.take(at).into())),
                '<' => open.push('>'),
                '[' => open.push(']'),
                '(' => open.push(')'),
                '{' => open.push('}'),
                // Not the end of the `->` between a socket's inode number and its peer's.
                _ if open.last() == Some(&c) => drop(open.pop()),
                _ => {}
            }
        }
        Err(format!("no end of {:.60}", self.rest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(bytes: &[u8]) -> Value {
        Value::Text(bytes.into(), false)
    }

    fn word(word: &str) -> Value {
        Value::Word(word.into())
    }

    #[test]
    fn a_call_of_each_kind_of_argument() {
        let line = "7<UNIX:[30->31,@\"\\x61\"]>, {msg_name=NULL, msg_namelen=110 => 0, msg_iov=[{iov_base=\"\\x61\\x22\", \
                    iov_len=2}, {iov_base=\"\"..., iov_len=9}], msg_control=[{cmsg_data=[9<\\x2f<char 1:3>>]}]}, \
                    MSG_PEEK|0x8 /* MSG_??? */) = 2";
        let (arguments, rest) = arguments(line).unwrap();
        assert_eq!(rest, " = 2");
        assert_eq!(arguments[0], word("7<UNIX:[30->31,@\"\\x61\"]>"));
        assert_eq!(arguments[2], word("MSG_PEEK|0x8"));
        let iov = arguments[1].member("msg_iov").unwrap().elements();
        assert_eq!(iov[0].member("iov_base"), Some(&text(b"a\"")));
        assert_eq!(iov[1].member("iov_base"), Some(&Value::Text(vec![], true)));
        assert_eq!(arguments[1].member("msg_namelen").unwrap().word(), "0");
    }

    #[test]
    fn names_of_arguments_and_what_became_of_them() {
        let line = "{flags=CLONE_VM|CLONE_THREAD, tls=0x7f} => {parent_tid=[16969]}, 88) = 16969";
        let (arguments, rest) = arguments(line).unwrap();
        let Value::Changed(before, _) = &arguments[0] else { panic!("{arguments:?}") };
        assert_eq!(before.member("flags"), Some(&word("CLONE_VM|CLONE_THREAD")));
        assert_eq!(rest, " = 16969");
        let (arguments, _) = super::arguments("child_stack=NULL, flags=SIGCHLD, x=@\"\\x62\", y=htons(6, 7))").unwrap();
        assert_eq!(arguments, [word("NULL"), word("SIGCHLD"), text(b"\0b"), word("htons(6, 7)")]);
    }

    #[test]
    fn what_is_no_notation_is_refused() {
        assert!(arguments("\"a\")").is_err());
        assert!(arguments("\"\\x6g\")").is_err());
        assert!(arguments("\"\\x61)").is_err());
        assert!(arguments("[1, 2").is_err());
        assert!(arguments("3<UNIX:[1->2)").is_err());
    }
}
