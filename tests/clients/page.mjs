// A page that uploads the chosen file with Uppy, as its documentation has it. `?endpoint=` says
// where to, `?video=` which; what became of it is the text of #result.

import Uppy from '@uppy/core'
import Tus from '@uppy/tus'

const query = new URLSearchParams(location.search)
const uppy = new Uppy({ autoProceed: true }).use(Tus, {
  endpoint: query.get('endpoint'),
  chunkSize: Number(query.get('chunk')) || Infinity,
  retryDelays: [100, 200, 500, 1000, 2000],
  allowedMetaFields: ['videoId', 'filename', 'filetype'],
})
uppy.on('complete', ({ successful, failed }) => {
  const result = { urls: successful.map((file) => file.uploadURL), failed: failed.length }
  document.querySelector('#result').textContent = JSON.stringify(result)
})
document.querySelector('#file').addEventListener('change', ({ target }) => {
  const [file] = target.files
  const meta = { videoId: query.get('video'), filename: file.name, filetype: file.type }
  uppy.addFile({ source: 'page', name: file.name, type: file.type, data: file, meta })
})
