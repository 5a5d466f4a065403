'use strict';
/*
 * socktrace's agent for Frida: puts the probe into the process and in the place of libc's socket calls.
 *
 * No JavaScript runs on a traced call; what does is the probe, a native library that this file carries. Works with
 * Frida Gadget (script and script-directory mode) and with `frida -l agent.js -P '{…}'`; docs/frida.md has the parameters.
 */

/* The probe's shared object, in base64, by Process.arch. */
const PROBES = /*@PROBES@*/ {};

const DEFAULTS = { max_fds: 4096, max_bytes: 4096, socket_paths: [], out_sock_type: 'dgram', on_full: 'drop', max_wait_ms: 1000, ring_bytes: 8388608, preload: '', stay: false };
const MAX_MAX_FDS = 1048576;
const MAX_MAX_WAIT_MS = 60000;
const MIN_RING = 65536;
const MAX_RING = 1073741824;
const MAX_PATH_BYTES = 107; /* sun_path less its NUL, unix(7) */

let loaded = null;
/* Whether it was this script that put the hooks in place, and is to take them out again. */
let isOurs = false;

rpc.exports = {
  init(stage, parameters) {
    if (loaded !== null) {
      return;
    }
    try {
      loaded = load(parameters);
    } catch (error) {
      /* The frida command discards what init throws. */
      console.error(error.message);
      throw error;
    }
  },

  /* The script is unloaded, not eternalized: leave nothing but the library, which a waiting call returns to. */
  dispose() {
    if (isOurs) {
      loaded.leave();
    }
  },
};

function load(given) {
  const running = findProbe();
  if (isStop(given)) {
    if (running !== null) {
      running.stop();
    }
    return running;
  }
  const parameters = check(given);
  const text = encode(parameters);
  if (running !== null) {
    ownDescriptors(parameters.max_fds).forEach((fd) => running.ignore(fd));
  }
  const probe = running || loadProbe();
  const complaint = probe.start(text.bytes, text.length);
  if (!complaint.isNull()) {
    const message = complaint.readUtf8String();
    /* By a script that was loaded before this one, or by LD_PRELOAD. */
    if (message === 'already') {
      console.warn('socktrace: is traced already, by whoever was first: nothing has changed');
      return probe;
    }
    throw new Error('socktrace: ' + message);
  }
  isOurs = running === null && !parameters.stay;
  return probe;
}

/* `{"stop": true}` makes the hooks of a probe that is in the process quiet; the next load wakes them. */
function isStop(given) {
  return typeof given === 'object' && given !== null && given.stop === true && Object.keys(given).length === 1;
}

/* Parameters */

function complain(name, takes) {
  throw new Error(`socktrace: parameter ${name}: takes ${takes}`);
}

function check(given) {
  if (typeof given !== 'object' || given === null || Array.isArray(given)) {
    throw new Error('socktrace: parameters: takes an object, such as {"out_socket_path":"/tmp/socktrace.sock"}');
  }
  const known = ['out_socket_path', ...Object.keys(DEFAULTS)];
  for (const name of Object.keys(given)) {
    if (!known.includes(name)) {
      throw new Error(`socktrace: unknown parameter ${name}: known are ${known.join(', ')}`);
    }
  }
  const p = Object.assign({}, DEFAULTS, given);
  if (p.out_socket_path === undefined) {
    throw new Error('socktrace: parameter out_socket_path is required: the path of the socket that socktrace-server was given');
  }
  if (!isPath(p.out_socket_path) || utf8(p.out_socket_path).length > MAX_PATH_BYTES) {
    complain('out_socket_path', `the path of the server's socket, 1 to ${MAX_PATH_BYTES} bytes`);
  }
  if (!isWhole(p.max_fds, 1, MAX_MAX_FDS)) {
    complain('max_fds', `a whole number from 1 to ${MAX_MAX_FDS}`);
  }
  if (!isWhole(p.max_bytes, 0, Number.MAX_SAFE_INTEGER)) {
    complain('max_bytes', 'a whole number of bytes from 0 up');
  }
  if (!Array.isArray(p.socket_paths) || !p.socket_paths.every(isPath)) {
    complain('socket_paths', 'a list of socket paths, such as ["/run/docker.sock", "@abstract"]');
  }
  if (!['dgram', 'stream', 'shm'].includes(p.out_sock_type)) {
    complain('out_sock_type', '"dgram" or "stream", as socktrace-server was started with, or "shm" with either');
  }
  if (p.on_full !== 'block' && p.on_full !== 'drop') {
    complain('on_full', '"block" or "drop"');
  }
  if (!isWhole(p.max_wait_ms, 0, MAX_MAX_WAIT_MS)) {
    complain('max_wait_ms', `a whole number of milliseconds from 0 to ${MAX_MAX_WAIT_MS}`);
  }
  if (!isWhole(p.ring_bytes, MIN_RING, MAX_RING) || (p.ring_bytes & (p.ring_bytes - 1)) !== 0) {
    complain('ring_bytes', `a power of two from ${MIN_RING} to ${MAX_RING}`);
  }
  if (p.preload !== '' && (!isPath(p.preload) || !p.preload.startsWith('/'))) {
    complain('preload', 'the absolute path of socktrace-probe.so, for programs that this one executes to load it from');
  }
  if (typeof p.stay !== 'boolean') {
    complain('stay', 'true or false');
  }
  return p;
}

function isPath(value) {
  return typeof value === 'string' && value.length > 0 && !value.includes('\0');
}

function isWhole(value, from, to) {
  return Number.isInteger(value) && value >= from && value <= to;
}

function utf8(text) {
  return Array.from(unescape(encodeURIComponent(text)), (c) => c.charCodeAt(0));
}

/* As the probe takes them: `key=value` texts, a NUL behind each. */
function encode(p) {
  const entries = [
    ['out_socket_path', p.out_socket_path],
    ['out_sock_type', p.out_sock_type],
    ['engine', 'frida'],
    ['preload', p.preload],
    ['max_fds', p.max_fds],
    ['max_bytes', p.max_bytes],
    ['on_full', p.on_full],
    ['max_wait_ms', p.max_wait_ms],
    ['ring_bytes', p.ring_bytes],
    ...p.socket_paths.map((path) => ['socket_path', path]),
    ...ownDescriptors(p.max_fds).map((fd) => ['ignore_fd', fd]),
  ];
  const text = utf8(entries.map(([key, value]) => `${key}=${value}\0`).join(''));
  const bytes = Memory.alloc(text.length);
  bytes.writeByteArray(text);
  return { bytes, length: text.length };
}

/* Descriptors that Frida has opened in this process for itself. */
function ownDescriptors(scanned) {
  const own = [];
  /* Those of a process that has been looked at less far are its own no less. */
  const maxFds = Math.max(scanned, DEFAULTS.max_fds);
  if (typeof Cloak !== 'undefined') {
    for (let fd = 0; fd !== maxFds; fd++) {
      if (Cloak.hasFileDescriptor(fd)) {
        own.push(fd);
      }
    }
    return own;
  }
  /* Frida 16 hides them, but does not tell; its end of each socket has a name of Frida's. */
  for (let fd = 0; fd !== maxFds; fd++) {
    const type = Socket.type(fd);
    if (type !== 'unix:stream') {
      continue;
    }
    const names = [Socket.localAddress(fd), Socket.peerAddress(fd)];
    if (names.some((name) => name !== null && /frida/.test(name.path || ''))) {
      own.push(fd);
    }
  }
  return own;
}

/* The probe */

function loadProbe() {
  const encoded = PROBES[Process.arch];
  if (encoded === undefined) {
    const has = Object.keys(PROBES).join(', ');
    throw new Error(`socktrace: no probe for ${Process.arch} in this agent.js, it has: ${has}`);
  }
  const file = writeProbe(decodeBase64(encoded));
  let handle;
  try {
    handle = linker().open(file.path);
  } finally {
    file.close();
  }
  return probeOf(handle);
}

/* dlopen(3) and dlsym(3) themselves: Module.load() of Frida 16 ends the program. */
function linker() {
  const RTLD_NOW = 2;
  const RTLD_NOLOAD = 4;
  const find = (name) => {
    /* Before glibc 2.34 they are in a library of their own. */
    const module = [libc(), Process.findModuleByName('libdl.so.2')].find((m) => m !== null && m.findExportByName(name) !== null);
    if (module === undefined) {
      throw new Error(`socktrace: this program has no ${name}() to load the probe with`);
    }
    return module.getExportByName(name);
  };
  const dlopen = new NativeFunction(find('dlopen'), 'pointer', ['pointer', 'int']);
  const dlsym = new NativeFunction(find('dlsym'), 'pointer', ['pointer', 'pointer']);
  const dlerror = new NativeFunction(find('dlerror'), 'pointer', []);
  return {
    open(path) {
      const handle = dlopen(Memory.allocUtf8String(path), RTLD_NOW);
      if (handle.isNull()) {
        throw new Error('socktrace: the probe does not load: ' + dlerror().readUtf8String());
      }
      return handle;
    },
    /* A library that is loaded already, by its DT_SONAME; null if it is not. */
    loaded(name) {
      return dlopen(Memory.allocUtf8String(name), RTLD_NOW | RTLD_NOLOAD);
    },
    symbol(handle, name) {
      return dlsym(handle, Memory.allocUtf8String(name));
    },
  };
}

function probeOf(handle) {
  const symbol = (name) => linker().symbol(handle, name);
  const fn = (name, result, args) => new NativeFunction(symbol(name), result, args);
  return {
    start: fn('socktrace_start', 'pointer', ['pointer', 'size_t']),
    stop: fn('socktrace_stop', 'void', []),
    ignore: fn('socktrace_ignore', 'void', ['int']),
    leave: fn('socktrace_leave', 'void', []),
  };
}

/* The probe that another script, or LD_PRELOAD, has put into this process. */
function findProbe() {
  const handle = linker().loaded('socktrace-probe.so');
  return handle.isNull() ? null : probeOf(handle);
}

function decodeBase64(text) {
  const digits = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/';
  const value = new Uint8Array(128);
  for (let i = 0; i !== digits.length; i++) {
    value[digits.charCodeAt(i)] = i;
  }
  const length = (text.length / 4) * 3 - (text.endsWith('==') ? 2 : text.endsWith('=') ? 1 : 0);
  const bytes = new Uint8Array(length);
  let at = 0;
  for (let i = 0; i !== text.length; i += 4) {
    const group =
      (value[text.charCodeAt(i)] << 18) |
      (value[text.charCodeAt(i + 1)] << 12) |
      (value[text.charCodeAt(i + 2)] << 6) |
      value[text.charCodeAt(i + 3)];
    for (let shift = 16; shift >= 0 && at !== length; shift -= 8) {
      bytes[at++] = group >> shift;
    }
  }
  return bytes;
}

function libc() {
  /* Whichever module the dynamic linker takes `socket` from; the names of glibc's and musl's files differ. */
  const names = ['libc.so.6', 'libc.so'];
  const named = names.map((name) => Process.findModuleByName(name)).find((module) => module !== null);
  const module =
    named || Process.enumerateModules().find((m) => /^(ld-musl-|libc\.|libc-)/.test(m.name) && m.findExportByName('recvmsg') !== null);
  if (!module) {
    throw new Error('socktrace: this program has no libc to hook (statically linked?)');
  }
  return module;
}

/* A file that only this process sees; one in /tmp, gone as soon as it is loaded, where memfd_create(2) is not to be had. */
function writeProbe(bytes) {
  const c = libc();
  const fn = (name, result, args) => new NativeFunction(c.getExportByName(name), result, args);
  const close = fn('close', 'int', ['int']);
  const write = fn('write', 'ssize_t', ['int', 'pointer', 'size_t']);
  const create = c.findExportByName('memfd_create');
  const MFD_CLOEXEC = 1;
  const name = Memory.allocUtf8String('socktrace-probe');
  let fd = create === null ? -1 : new NativeFunction(create, 'int', ['pointer', 'uint'])(name, MFD_CLOEXEC);
  /* Not the name that others give such a file: the dynamic linker takes one name for one library. */
  let path = `/proc/self/fd/./${fd}`;
  let remove = () => {};
  if (fd === -1) {
    const template = Memory.allocUtf8String('/tmp/socktrace-probe-XXXXXX');
    fd = fn('mkstemp', 'int', ['pointer'])(template);
    if (fd === -1) {
      throw new Error('socktrace: cannot create a file for the probe, neither by memfd_create nor in /tmp');
    }
    path = template.readUtf8String();
    remove = () => fn('unlink', 'int', ['pointer'])(template);
  }
  const memory = Memory.alloc(bytes.length);
  memory.writeByteArray(bytes.buffer);
  for (let done = 0; done !== bytes.length; ) {
    const n = Number(write(fd, memory.add(done), bytes.length - done));
    if (n <= 0) {
      close(fd);
      remove();
      throw new Error('socktrace: cannot write the probe: no space left?');
    }
    done += n;
  }
  return {
    path,
    close() {
      close(fd);
      remove();
    },
  };
}
