// Socket calls as one would first write it: callbacks in JavaScript, one message to a collector for each call.
const libc = name => Module.getGlobalExportByName(name);
const socket = new NativeFunction(libc('socket'), 'int', ['int', 'int', 'int']);
const sendto = new NativeFunction(libc('sendto'), 'ssize_t', ['int', 'pointer', 'size_t', 'int', 'pointer', 'int']);

const path = 'SOCKET_PATH';
const address = Memory.alloc(110);
address.writeU16(1).add(2).writeUtf8String(path);
const out = socket(1, 2, 0);

for (const name of ['send', 'recv', 'write', 'read']) {
    Interceptor.attach(libc(name), {
        onEnter(args) {
            this.fd = args[0].toInt32();
            this.buffer = args[1];
        },
        onLeave(result) {
            const length = result.toInt32();
            if (length > 0 && Socket.type(this.fd) === 'unix:stream') {
                const bytes = this.buffer.readByteArray(length);
                const message = Memory.alloc(length);
                message.writeByteArray(bytes);
                sendto(out, message, length, 0, address, 3 + path.length);
            }
        }
    });
}
