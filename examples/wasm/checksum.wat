;; A phase in WebAssembly: the CRC-32 of its instructions, as they came.
;;
;; It is a program for WASI preview 1: it reads standard input to its end, and prints one JSON object. Real
;; ones are written in Rust, C, Go or Zig; this one is small enough to be read, and needs nothing to be run
;; but checksum.wasm beside it, which `wat2wasm checksum.wat` makes.
(module
  (import "wasi_snapshot_preview1" "fd_read"
    (func $fd_read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write"
    (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))

  ;; 0: where a buffer is and how long, 8: how many bytes went through, 32: texts, 1024: the buffer.
  (memory (export "memory") 2)
  (data (i32.const 32) "{\"crc32\":\"00000000\"}\n")
  (data (i32.const 64) "0123456789abcdef")
  (data (i32.const 96) "standard input cannot be read\n")

  (func $print (param $stream i32) (param $at i32) (param $bytes i32)
    (i32.store (i32.const 0) (local.get $at))
    (i32.store (i32.const 4) (local.get $bytes))
    (drop (call $fd_write (local.get $stream) (i32.const 0) (i32.const 1) (i32.const 8))))

  ;; One more byte, bit by bit.
  (func $update (param $crc i32) (param $byte i32) (result i32)
    (local $bit i32)
    (local.set $crc (i32.xor (local.get $crc) (local.get $byte)))
    (loop $bits
      (local.set $crc
        (i32.xor
          (i32.shr_u (local.get $crc) (i32.const 1))
          (i32.and
            (i32.const 0xedb88320)
            (i32.sub (i32.const 0) (i32.and (local.get $crc) (i32.const 1))))))
      (local.set $bit (i32.add (local.get $bit) (i32.const 1)))
      (br_if $bits (i32.lt_u (local.get $bit) (i32.const 8))))
    (local.get $crc))

  (func (export "_start")
    (local $crc i32) (local $at i32) (local $bytes i32) (local $digit i32)
    (local.set $crc (i32.const -1))
    (loop $more
      (i32.store (i32.const 0) (i32.const 1024))
      (i32.store (i32.const 4) (i32.const 65536))
      (if (call $fd_read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8))
        (then
          ;; What stands on standard error is the log; 74 says that another attempt may do better.
          (call $print (i32.const 2) (i32.const 96) (i32.const 30))
          (call $proc_exit (i32.const 74))))
      (local.set $bytes (i32.load (i32.const 8)))
      (local.set $at (i32.const 0))
      (block $end
        (loop $each
          (br_if $end (i32.ge_u (local.get $at) (local.get $bytes)))
          (local.set $crc
            (call $update
              (local.get $crc)
              (i32.load8_u (i32.add (i32.const 1024) (local.get $at)))))
          (local.set $at (i32.add (local.get $at) (i32.const 1)))
          (br $each)))
      (br_if $more (local.get $bytes)))
    (local.set $crc (i32.xor (local.get $crc) (i32.const -1)))
    ;; The digits take the place of the zeros, the last first.
    (loop $digits
      (i32.store8
        (i32.sub (i32.const 49) (local.get $digit))
        (i32.load8_u (i32.add (i32.const 64) (i32.and (local.get $crc) (i32.const 15)))))
      (local.set $crc (i32.shr_u (local.get $crc) (i32.const 4)))
      (local.set $digit (i32.add (local.get $digit) (i32.const 1)))
      (br_if $digits (i32.lt_u (local.get $digit) (i32.const 8))))
    (call $print (i32.const 1) (i32.const 32) (i32.const 21))))
