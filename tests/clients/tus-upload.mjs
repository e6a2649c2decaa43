// Uploads a file with tus-js-client. The first argument is JSON: `file`, `endpoint` or `uploadUrl`,
// `metadata`, `storage` (a file for the URLs of unfinished uploads), `stream` (true for one whose
// size nobody knows), and any option of the library.
// Prints one JSON object a line: what was accepted, and how it ended.

import fs from 'node:fs'
import { PassThrough } from 'node:stream'
import * as library from 'tus-js-client'

const { Upload, FileUrlStorage } = library.default ?? library
const { file, stream, storage, ...options } = JSON.parse(process.argv[2])
const say = (event) => fs.writeSync(1, JSON.stringify(event) + '\n')

// The library knows the size of a file's stream, and of no other.
const source = fs.createReadStream(file)
const upload = new Upload(stream ? source.pipe(new PassThrough()) : source, {
  retryDelays: [100, 200, 500, 1000, 2000, 2000, 2000, 2000],
  removeFingerprintOnSuccess: true,
  ...options,
  ...(storage ? { urlStorage: new FileUrlStorage(storage) } : {}),
  onChunkComplete: (size, accepted, total) => say({ accepted, total }),
  onSuccess: () => say({ url: upload.url }),
  onError: (error) => {
    say({ error: String(error) })
    process.exitCode = 1
  },
})

if (storage) {
  const previous = await upload.findPreviousUploads()
  say({ found: previous.length })
  if (previous.length) upload.resumeFromPreviousUpload(previous[0])
}
upload.start()
