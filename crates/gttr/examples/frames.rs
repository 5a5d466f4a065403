//! Makes a frame, cuts the stream that it is in, and finds it again.

use gttr::{Direction, Ext, ExtWriter, Frame, FrameType, StreamDecoder, StreamStep};

fn main() {
    println!("{}", there_and_back());
}

/// What a server understands of a frame that comes in two pieces, behind something that is none.
pub fn there_and_back() -> String {
    let mut room = [0; 64];
    let mut ext = ExtWriter::new(&mut room);
    ext.put(Ext::Pid(4711));
    let frame = Frame {
        fd: 8,
        direction: Direction::Out,
        path: b"/run/demo.sock",
        conn: b"demo:fd=8",
        payload: b"ping",
        ext: ext.finish(),
        ..Frame::new(FrameType::Data, 1_795_407_956_372)
    };
    let mut stream = b"noise".to_vec();
    let begin = stream.len();
    stream.resize(begin + frame.encoded_len(), 0);
    frame.encode(&mut stream[begin..]).expect("there is room");

    let mut decoder = StreamDecoder::new();
    let mut understood = String::new();
    let (mut at, mut len) = (0, stream.len() - 3);
    loop {
        match decoder.step(&stream[at..len]) {
            StreamStep::Garbage { skip } => at += skip,
            // The rest arrives.
            StreamStep::Incomplete { .. } if len < stream.len() => len = stream.len(),
            StreamStep::Incomplete { .. } => return understood,
            StreamStep::Frame { frame, len } => {
                if let Some((bytes, error)) = decoder.take_garbage() {
                    understood.push_str(&format!("{bytes} bytes are no frame: {error}\n"));
                }
                let (conn, payload) = (frame.conn.escape_ascii(), frame.payload.escape_ascii());
                understood.push_str(&format!("process {:?} on {conn}: {payload}\n", frame.pid()));
                at += len;
            }
        }
        if at == stream.len() {
            return understood;
        }
    }
}
