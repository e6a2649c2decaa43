// Express that pipes every upload into a file: node express.mjs PORT FOLDER
import { createWriteStream } from 'node:fs'
import { basename, join } from 'node:path'
import { pipeline } from 'node:stream/promises'
import express from 'express'

const [port, folder] = process.argv.slice(2)
const app = express()

app.get('/healthz', (request, response) => response.json({ status: 'ok' }))

app.put('/:name', async (request, response) => {
  await pipeline(request, createWriteStream(join(folder, basename(request.params.name))))
  response.json({ success: true })
})

app.listen(Number(port), '127.0.0.1')
